"""The results table of a sweep: derived from the manifests of its descendants, so that it can always be made anew."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pandas
import pyarrow

from ray_learngene.errors import UserError
from ray_learngene.report import leaderboard_page
from ray_learngene.store import Store

RESULTS, PAGE, SETTINGS = "results.parquet", "leaderboard.html", "sweep.json"


def read_settings(store: Store, name: str) -> dict[str, Any] | None:
    """What sweep.json says of a sweep: what its descendants have in `common` and its `budgets`; None without one.

    Raises:
        UserError: it is damaged.
    """
    path = f"sweeps/{name}/{SETTINGS}"
    text = store.read_text(path)
    if text is None:
        return None
    try:
        settings = json.loads(text)
        return {**settings, **{key: dict(settings.get(key, {})) for key in ("common", "budgets")}}
    except (ValueError, TypeError, AttributeError):
        raise UserError(f"{store.objects.uri_of(path)} is damaged: delete it, the sweep makes it anew") from None


def sweep_table(store: Store, name: str, unfinished: Sequence[dict[str, Any]] = ()) -> pandas.DataFrame:
    """One row per published descendant of a sweep, and one for each trial that did not finish."""
    return pandas.DataFrame([*store.rows(name), *unfinished])


def earlier_rows(store: Store, name: str) -> list[dict[str, Any]]:
    """What earlier runs of a sweep settled: its published descendants, and trials that were stopped early."""
    path = f"sweeps/{name}/{RESULTS}"
    table = store.read_table(path).to_pylist() if store.has(path) else []
    return store.rows(name) + [row for row in table if row["status"] == "stopped"]


def write_results(store: Store, name: str, unfinished: Sequence[dict[str, Any]] = ()) -> pandas.DataFrame:
    """Write the table and the page of a sweep."""
    table = sweep_table(store, name, unfinished)
    store.write_table(f"sweeps/{name}/{RESULTS}", pyarrow.Table.from_pandas(table, preserve_index=False))
    store.write_text(f"sweeps/{name}/{PAGE}", leaderboard_page(table, name))
    return table

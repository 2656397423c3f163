"""The results table of a sweep, derived from the manifests of its descendants."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas
import pyarrow

from ray_learngene.pages.columns import records_of
from ray_learngene.pages.page import SweepPage
from ray_learngene.store.costs import costed
from ray_learngene.store.store import Store
from ray_learngene.store.sweeps import PAGE, RESULTS, sweep_file


def earlier_rows(store: Store, name: str) -> list[dict[str, Any]]:
    """Return what earlier runs of a sweep settled: its published descendants, and trials that were stopped early."""
    table = store.find_table(sweep_file(name, RESULTS))
    return store.rows(name) + [row for row in (table.to_pylist() if table else ()) if row["status"] == "stopped"]


def write_results(store: Store, name: str, unfinished: Sequence[dict[str, Any]] = ()) -> pandas.DataFrame:
    """Write the table and the page of a sweep."""
    found = store.finished(name)
    rows = costed([entry.facts for entry in found], store, name)
    table = pandas.DataFrame([*rows, *unfinished])
    store.write_table(sweep_file(name, RESULTS), pyarrow.Table.from_pandas(table, preserve_index=False))
    page = SweepPage(store, name).text(records_of(rows, found), unfinished)
    store.write_text(sweep_file(name, PAGE), page)
    return table

"""The files of a sweep in a store, next to its descendants."""

from __future__ import annotations

import json
from typing import Any

from ray_learngene.errors import UserError
from ray_learngene.store.store import Store

RESULTS, PAGE, SETTINGS = "results.parquet", "leaderboard.html", "sweep.json"


def sweep_file(name: str, file: str) -> str:
    """The path of a file of a sweep below the store's root."""
    return f"sweeps/{name}/{file}"


def read_settings(store: Store, name: str) -> dict[str, Any] | None:
    """What sweep.json says of a sweep: what its descendants have in `common` and its `budgets`; None without one.

    Raises:
        UserError: it is damaged.
    """
    path = sweep_file(name, SETTINGS)
    text = store.read_text(path)
    if text is None:
        return None
    try:
        settings = json.loads(text)
        return {**settings, **{key: dict(settings.get(key, {})) for key in ("common", "budgets")}}
    except (ValueError, TypeError, AttributeError):
        raise UserError(f"{store.objects.uri_of(path)} is damaged: delete it, the sweep makes it again") from None

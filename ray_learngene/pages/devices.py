"""Latencies on devices that were timed on their own, for the models of a page: measured, or predicted."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from ray_learngene.errors import UserError
from ray_learngene.pages.columns import Record
from ray_learngene.store.store import Store
from ray_learngene.store.timings import Record as Timed
from ray_learngene.store.timings import Timing, Timings, record_of

log = logging.getLogger(__name__)


def device_timings(store: Store) -> list[Timings]:
    """Return all devices of a store under all conditions; a damaged record is left out."""
    found: dict[tuple[str, str], list[Timed]] = defaultdict(list)
    for manifest in store.manifests("timing"):
        try:
            record = record_of(manifest)
        except UserError as error:
            log.warning("left out: %s", error)
            continue
        found[manifest.name.partition("/")[0], record.conditions].append(record)
    return [Timings(device, tuple(records)) for (device, _), records in sorted(found.items())]


def device_columns(records: Sequence[Record], timings: Sequence[Timings], first: int) -> dict[str, list[Any]]:
    """Latency of every model on every device, and the relative error of predictions; None where nothing is known.

    Args:
        first: The number of the first of these devices on the page.
    """
    columns: dict[str, list[Any]] = {}
    for number, device in enumerate(timings, start=first):
        known: dict[Any, Timing | None] = {}
        for one in records:
            if one["timed"] not in known:
                known[one["timed"]] = _timing(device, one["timed"])
        of_models = [known[one["timed"]] for one in records]
        columns[f"latency{number}"] = [one and float(f"{one.milliseconds:.4g}") for one in of_models]
        columns[f"error{number}"] = [round(one.error, 4) if one and one.error else None for one in of_models]
    return columns


def _timing(device: Timings, size: tuple[tuple[str, Any], ...]) -> Timing | None:
    try:
        return device.of(dict(size))
    except UserError:  # of another architecture, or too few sizes to predict from
        return None

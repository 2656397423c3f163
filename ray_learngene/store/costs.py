"""The whole cost of descendants: their own training, and what several of them share."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from ray_learngene.errors import UserError
from ray_learngene.progress import counted
from ray_learngene.store.lineage import ancestry_costs
from ray_learngene.store.rows import numbers_of
from ray_learngene.store.store import Store
from ray_learngene.store.sweeps import read_settings

UNITS = ("flops", "seconds")
COST_NOTE = (
    "whole cost: training, and a share of the learngene and of its ancestry model if that was trained in this store; "
    "undivided: all of them"
)


def own_cost(row: Mapping[str, Any], unit: str) -> float | None:
    """Return the cost of a descendant's own training and of the fit to its size; FLOPs with teacher forward passes."""
    return _sum(row, "", unit, fit=True)


def learngene_cost(row: Mapping[str, Any], unit: str) -> float | None:
    """Return the cost of a descendant's learngene, with the teacher and what it started from; 0 without a learngene."""
    return _sum(row, "learngene_", unit) if row.get("learngene") else 0.0


def with_whole_costs(
    rows: Sequence[Mapping[str, Any]], store: Store, teacher: str | None = None
) -> list[dict[str, Any]]:
    """Add columns to the finished rows of one sweep, in FLOPs and in seconds; None where a cost is not known.

    - `own_*`: training, teacher forward passes and the fit to its size.
    - `ancestry_*`: training of the ancestry models of this store that the descendant goes back to.
    - `whole_*`: `own_*`, and its share of learngene and ancestry: each divided by the sizes of its arm that use it.
    - `undivided_*`: `own_*`, and all of learngene and ancestry, as if this were the only descendant.

    Args:
        teacher: Reference of the ancestry model that teaches the descendants themselves.
    """

    @cache
    def ancestry(learngene: str | None) -> dict[str, float]:
        named = [f"store:learngenes/{learngene}"] if learngene else []
        return ancestry_costs([*named, *([teacher] if teacher else [])], store)

    sizes: dict[Any, set[Any]] = defaultdict(set)
    for row in rows:
        size = row.get("width"), row.get("depth"), row.get("image"), row.get("params")
        sizes[row.get("arm")].add(size)
        sizes[row.get("arm"), row.get("learngene")].add(size)
    table = []
    for row in rows:
        columns: dict[str, float | None] = {}
        for unit in UNITS:
            own, gene, old = own_cost(row, unit), learngene_cost(row, unit), ancestry(row.get("learngene"))[unit]
            known = own is not None and gene is not None
            share = (gene or 0) / len(sizes[row.get("arm"), row.get("learngene")]) + old / len(sizes[row.get("arm")])
            columns[f"own_{unit}"], columns[f"ancestry_{unit}"] = own, old
            columns[f"whole_{unit}"] = (own or 0) + share if known else None
            columns[f"undivided_{unit}"] = (own or 0) + (gene or 0) + old if known else None
        table.append({**row, **columns})
    return table


def _sum(row: Mapping[str, Any], part: str, unit: str, *, fit: bool = False) -> float | None:
    needed = [f"{part}flops", f"{part}teacher_flops"] if unit == "flops" else [f"{part}{unit}"]
    found = numbers_of(row, *needed)
    if found is None:
        return None
    fitted = numbers_of(row, f"fit_{unit}") if fit else None
    return sum(found.values()) + sum((fitted or {}).values())


def costed_rows(store: Store, name: str) -> list[dict[str, Any]]:
    """Return the rows of a sweep's published descendants, with the columns of `with_whole_costs`."""
    return costed(store.rows(name), store, name)


def costed(rows: Sequence[Mapping[str, Any]], store: Store, name: str) -> list[dict[str, Any]]:
    """Return the finished rows of a sweep, with the columns of `with_whole_costs`."""
    try:
        settings = read_settings(store, name)
    except UserError:  # damaged: the teacher of the descendants themselves is not known then
        settings = None
    teacher = settings["config"].get("ancestry") if settings else None
    return with_whole_costs(rows, store, teacher if isinstance(teacher, str) else None)


def cost_text(row: Mapping[str, Any], kind: str) -> str:
    """Return the whole or undivided cost of a row in FLOPs and seconds."""
    found = numbers_of(row, f"{kind}_flops", f"{kind}_seconds")
    if found is None or any(math.isnan(value) for value in found.values()):
        return "-"
    flops = f"{found[f'{kind}_flops']:.1e}".replace("e+", "e")
    return f"{flops} FLOP, {found[f'{kind}_seconds']:.0f} s"


def epochs_text(row: Mapping[str, Any]) -> str:
    """Return the epochs of an arm without a learngene, and what it has in common with arms that have one."""
    basis = {"cost": "equal cost", "epochs": "equal epochs"}.get(str(row.get("scratch")))
    return f", {counted(row.get('epochs'), 'epoch')}, {basis}" if basis else ""

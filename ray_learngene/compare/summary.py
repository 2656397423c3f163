"""The summary of a benchmark's table: accuracy, stored parameters and total cost of every arm."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas

MEASURES = {"top1_untuned": "before tuning", "top1_epoch1": "after 1 epoch", "top1": "at the end"}
_SIZE = ["width", "depth"]
_ROUNDING = 1e-9  # points of accuracy: two ways to compute the same mean differ by less


@dataclass(frozen=True)
class Cost:
    """The cost of one arm, mean over seeds, in one unit (images, FLOPs or seconds).

    Attributes:
        search: Cost of the learning rate search, paid once.
        once: Cost of everything that all sizes share.
        each: Cost of one more size, mean over sizes: its tuning, and its own pre-training if it has one.
    """

    search: float
    once: float
    each: float

    def total(self, descendants: int, *, search: bool = True) -> float:
        """Compute the cost of delivering that many sizes."""
        return search * self.search + self.once + descendants * self.each


def cost(arm: pandas.DataFrame, unit: str, *, ancestry: bool = False) -> Cost:
    """Compute the cost of an arm from its rows of the table.

    Args:
        unit: images, flops, teacher_flops or seconds. FLOPs and seconds include teacher forward passes; teacher_flops
            are these passes alone.
        ancestry: Include the training of the ancestry model. The cost is NaN if that is unknown.
    """
    search = float(_spent(arm, "search", unit).iloc[0])
    own = _needs_ancestry(arm)
    once = float(arm[f"ancestry_{unit}"].astype(float).iloc[0]) if ancestry and own else 0.0
    each = float(_spent(arm, "tune", unit).mean())
    if arm["learngene"].notna().all():
        spent = float(_spent(arm.drop_duplicates("learngene"), "learngene", unit).mean())
        if per_size(arm):
            each += spent
        else:
            once += spent
    return Cost(search, once, each)


def _spent(rows: pandas.DataFrame, on: str, unit: str) -> pandas.Series:
    """Return the cost of each row for one purpose: tune, search or learngene."""
    spent = rows[f"{on}_{unit}"]
    return spent + rows[f"{on}_teacher_flops"] if unit == "flops" else spent


def per_size(arm: pandas.DataFrame) -> bool:
    """Check whether every size has its own learngene."""
    return bool(arm["per_size"].all())


def _needs_ancestry(arm: pandas.DataFrame) -> bool:
    return bool(arm["learngene"].notna().any() or (arm["tune_teacher_flops"] > 0).any())


def stored_parameters(arm: pandas.DataFrame) -> int:
    """Count the parameters to store for initialising all sizes of one seed."""
    made = arm.drop_duplicates("learngene").dropna(subset=["learngene"])
    return int(made["learngene_parameters"].sum() / max(1, arm["seed"].nunique())) if len(made) else 0


def accuracy(arm: pandas.DataFrame, measure: str) -> tuple[float, float]:
    """Return the mean over sizes and seeds, and the standard deviation over seeds of the mean over sizes."""
    by_seed = arm.groupby("seed")[measure].mean()
    return float(by_seed.mean()), float(by_seed.std(ddof=1)) if len(by_seed) > 1 else 0.0


def break_even(arm: Cost, reference: Cost, *, search: bool = True) -> float:
    """Return the smallest number of descendants from which on an arm costs less than the reference.

    Infinity means never; NaN means that a cost is unknown.
    """
    saved = reference.each - arm.each
    ahead = search * (arm.search - reference.search) + arm.once - reference.once
    if math.isnan(ahead):
        return math.nan
    if saved > 0:
        return max(1, math.floor(ahead / saved) + 1)
    return 1 if saved == 0 and ahead < 0 else math.inf


def cost_until(arm: pandas.DataFrame, reference: pandas.DataFrame, unit: str = "flops") -> tuple[float, int, int]:
    """Compute the cost, without search and ancestry, until sizes reach the reference's final accuracy.

    A size reaches it in the first epoch whose accuracy, averaged over seeds, is at least the reference's at the end.
    Sizes that never reach it do not count. The cost that all sizes share counts once.

    Returns:
        The cost, the number of sizes that reach the accuracy, and the number of sizes compared.
    """
    goals = reference.groupby(_SIZE)["top1"].mean()
    whole = cost(arm, unit)
    total, reached, compared = 0.0, 0, 0
    for size, rows in arm.groupby(_SIZE):
        if size not in goals.index:
            continue
        compared += 1
        history = np.mean(np.stack(rows["history"].to_list()), axis=0)
        hits = np.flatnonzero(history >= goals[size] - _ROUNDING)
        if not len(hits):
            continue
        reached += 1
        share = hits[0] / max(1, len(history) - 1)
        fitted = rows[f"fit_{unit}"].mean() if f"fit_{unit}" in rows else 0.0
        total += fitted + share * float((_spent(rows, "tune", unit) - rows.get(f"fit_{unit}", 0)).mean())
        if per_size(arm):
            total += float(_spent(rows, "learngene", unit).mean())
    return total + (whole.once if reached else 0.0), reached, compared


def saving(
    arm: pandas.DataFrame, reference: pandas.DataFrame, descendants: int = 10, unit: str = "flops"
) -> float | None:
    """Return the factor of training saved by an arm that delivers `descendants` sizes at the reference's accuracy.

    Both arms are charged until they first reach the reference's final accuracy. Every size is assumed to cost the mean
    of the measured ones. None if a measured size does not reach the accuracy.
    """
    mine, theirs = (_until_all_reach(one, reference, descendants, unit) for one in (arm, reference))
    return theirs / mine if mine and theirs else None


def _until_all_reach(arm: pandas.DataFrame, reference: pandas.DataFrame, descendants: int, unit: str) -> float | None:
    until, reached, compared = cost_until(arm, reference, unit)
    if reached < compared or not compared:
        return None
    once = cost(arm, unit).once
    return once + descendants * (until - once) / compared


def summarise(table: pandas.DataFrame, arms: Sequence[str], reference: str) -> list[dict[str, Any]]:
    """Summarise every arm in one row, in the given order, with the costs of all its sizes together.

    Ratios and break-even compare the arm to the reference at the sizes that both have; None if they share none.
    """
    base = table[table["arm"] == reference]
    rows = []
    for name in arms:
        arm = table[table["arm"] == name]
        if not len(arm):
            continue
        count = len(arm.drop_duplicates(_SIZE))
        flops = cost(arm, "flops")
        rows.append(
            {
                "arm": name,
                "sizes": count,
                "stored": stored_parameters(arm),
                **{measure: accuracy(arm, measure) for measure in MEASURES},
                "images": cost(arm, "images").total(count, search=False),
                "flops": flops.total(count, search=False),
                "flops_teacher": cost(arm, "teacher_flops").total(count, search=False),
                "flops_ancestry": cost(arm, "flops", ancestry=True).total(count),
                "seconds": cost(arm, "seconds").total(count, search=False),
                **_against(arm, base),
                "distill_lr": arm["distill_lr"].iloc[0],
                "lr": arm["lr"].iloc[0],
            }
        )
    return rows


def _against(arm: pandas.DataFrame, base: pandas.DataFrame) -> dict[str, Any]:
    """Compare an arm to the reference at the sizes that both have."""
    mine = arm.merge(base[_SIZE].drop_duplicates(), on=_SIZE)
    theirs = base.merge(arm[_SIZE].drop_duplicates(), on=_SIZE)
    count = len(mine.drop_duplicates(_SIZE))
    if not count:
        compared_by = [f"{name}{kind}" for name in ("ratio", "break_even") for kind in ("", "_seconds", "_ancestry")]
        nothing = dict.fromkeys([*compared_by, "until", "saving", "saving_seconds"])
        return {**nothing, "until_reached": 0, "until_compared": 0}
    kinds = {"": ("flops", False), "_seconds": ("seconds", False), "_ancestry": ("flops", True)}
    ratios: dict[str, float] = {}
    for kind, (unit, everything) in kinds.items():
        here, there = (cost(one, unit, ancestry=everything) for one in (mine, theirs))
        ratios[f"ratio{kind}"] = there.total(count, search=everything) / here.total(count, search=everything)
        ratios[f"break_even{kind}"] = break_even(here, there, search=everything)
    until, reached, compared = cost_until(mine, theirs)
    return {
        **ratios,
        "until": until,
        "until_reached": reached,
        "until_compared": compared,
        "saving": saving(mine, theirs),
        "saving_seconds": saving(mine, theirs, unit="seconds"),
    }

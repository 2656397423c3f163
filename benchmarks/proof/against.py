"""A learngene against a reference's front: accuracy by size, and what the reference pays for that accuracy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import pandas

from benchmarks.proof.charges import Charges
from benchmarks.proof.table import Row, table
from ray_learngene.compare.front import Front, schedules
from ray_learngene.compare.significance import Difference, paired
from ray_learngene.compare.summary import Cost, cost

MANY = 10  # sizes of the promise


def against_front(
    rows: Sequence[Row], data: str, charges: Charges | None = None, reference: str = "scratch"
) -> list[str]:
    """Markdown for each learngene arm and schedule: sizes one by one, then what all of them cost.

    Args:
        charges: What runs cost in seconds; default: CPU seconds of their processes.
    """
    tuned, untuned = table(rows, data, charges), table(rows, data, charges, untuned=True)
    if not len(tuned) or not schedules(tuned, reference):
        return []
    lines = []
    for name in tuned[tuned["learngene"].notna()]["arm"].drop_duplicates():
        arm, before = (one[one["arm"] == name] for one in (tuned, untuned))
        lines += [f"### {name} epochs against the front of {reference}", "", *_sizes(tuned, arm, before, reference), ""]
        sizes = arm["depth"].nunique()
        lines += [
            f"| | unit | cost of {sizes} sizes | times less than {reference} | {MANY} sizes: times less "
            "| with the teacher's own training |",
            "|---|---|---|---|---|---|",
        ]
        for said, some in (("untuned", before), ("tuned", arm)):
            lines += [_whole(tuned, some, said, unit, reference) for unit in ("flops", "seconds")]
        lines.append("")
    return lines


def _sizes(everything: pandas.DataFrame, arm: pandas.DataFrame, before: pandas.DataFrame, reference: str) -> list[str]:
    front = Front(everything, reference)
    plateau = front.plateau(everything, reference)
    lines = [
        f"| depth | seeds | best of {reference} | untuned | tuned | untuned - {reference} | tuned - {reference} "
        f"| {reference} pays, TFLOPs |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for size, some in arm.groupby(["width", "depth"]):
        same = [(one["width"] == size[0]) & (one["depth"] == size[1]) for one in (before, plateau)]
        if not same[1].any():
            continue
        best, (pays, bound) = front.best(size), front.cost_of(size, float(some["top1"].mean()))
        differences = [paired(one, plateau[same[1]]) for one in (before[same[0]], some)]
        columns = (
            size[1],
            len(some),
            f"{best.top1:.2f} (x{best.times})",
            f"{before[same[0]]['top1'].mean():.2f}",
            f"{some['top1'].mean():.2f}",
            *("" if each is None else _points(each) for each in differences),
            f"{bound.replace('=', '')}{pays / 1e12:.1f}",
        )
        lines.append("| " + " | ".join(map(str, columns)) + " |")
    return lines


def _points(difference: Difference) -> str:
    """A difference with its interval; one seed has none."""
    return f"{difference.mean:+.2f}" + (f" ± {difference.half:.2f}" if difference.seeds > 1 else "")


class Saving(NamedTuple):
    """How many times less an arm costs than a reference for the same accuracies.

    Attributes:
        sizes: Of the sizes that were trained.
        pays: What the reference pays for one size, mean over them.
        spent: What the arm costs.
        whole: The same with the training of its teacher.
        bound: `<`, `>`, `~` or nothing, see `Front.saving`.
    """

    sizes: float
    pays: float
    spent: Cost
    whole: Cost
    bound: str

    def times(self, sizes: int, *, teacher: bool = False) -> float:
        """How many times less a number of sizes costs, each as a size costs on average."""
        return sizes * self.pays / (self.whole if teacher else self.spent).total(sizes, search=False)

    def break_even(self, *, teacher: bool = False) -> float:
        """The number of sizes from which on the arm costs less; infinite if a size costs more than the reference's."""
        arm = self.whole if teacher else self.spent
        return arm.once / (self.pays - arm.each) if self.pays > arm.each else math.inf


def saving(everything: pandas.DataFrame, arm: pandas.DataFrame, unit: str, reference: str) -> Saving | None:
    """Compare an arm with a reference's front by `flops` or `seconds`; None without a size in common."""
    front = Front(everything, reference, unit)
    saved = front.saving(arm, unit)
    if saved is None:
        return None
    factor, bound = saved
    spent = cost(arm, unit)
    shared = [size for size in arm.groupby(["width", "depth"]).groups if size in front.points]
    pays = factor * spent.total(len(shared), search=False) / len(shared)
    return Saving(factor, pays, spent, cost(arm, unit, ancestry=True), bound.replace("=", ""))


def _whole(everything: pandas.DataFrame, arm: pandas.DataFrame, said: str, unit: str, reference: str) -> str:
    """What all sizes cost, and how many times less that is than the reference for the same accuracies."""
    saved = saving(everything, arm, unit, reference)
    if saved is None:
        return f"| {said} | no size in common | | | | |"
    if math.isnan(saved.sizes):
        return f"| {said} | not timed | | | | |"
    scale, name = (1e12, "TFLOPs") if unit == "flops" else (1, "s")
    total = cost(arm, unit).total(arm["depth"].nunique(), search=False) / scale
    return (
        f"| {said} | {name} | {total:,.4g} | {saved.bound}{saved.sizes:.2f} "
        f"| {saved.times(MANY):.2f} | {saved.times(MANY, teacher=True):.2f} |"
    )

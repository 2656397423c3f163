"""The reference's front: its accuracy against cost over ever longer trainings, until doubling brings little.

A learngene is held against the best that training from scratch can do, not against one schedule of it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import pandas

from ray_learngene.compare.arms import ArmPlan
from ray_learngene.compare.summary import cost
from ray_learngene.config import BenchConfig
from ray_learngene.models.specs import Spec

Size = tuple[int, int]  # width, depth


def longer(config: BenchConfig, reference: ArmPlan, times: int, specs: Sequence[Spec]) -> ArmPlan:
    """Plan the reference's training for that many times its epochs, at some of its sizes."""
    epochs = times * (reference.arm.epochs or config.epochs)
    return replace(
        reference,
        name=longer_name(reference.name, times),
        arm=reference.arm.model_copy(update={"epochs": epochs}),
        distillations=dict.fromkeys(specs),
        refused={},
    )


def longer_name(reference: str, times: int) -> str:
    return reference if times == 1 else f"{reference}-x{times}"


def schedules(table: pandas.DataFrame, reference: str) -> dict[int, pandas.DataFrame]:
    """Return the rows of the reference's trainings by the multiple of its epochs, the shortest first."""
    found = {}
    for name, rows in table.groupby("arm"):
        if name == reference:
            found[1] = rows
        elif match := re.fullmatch(rf"{re.escape(reference)}-x(\d+)", str(name)):
            found[int(match[1])] = rows
    return dict(sorted(found.items()))


def still_gaining(config: BenchConfig, table: pandas.DataFrame, row: ArmPlan, times: int) -> list[Spec]:
    """Return the sizes that the latest doubling made better by `front_gain` points or more, mean over seeds."""
    before, after = (
        _means(table[table["arm"] == longer_name(config.reference, number)]) for number in (times // 2, times)
    )
    return [
        spec
        for spec in row.specs
        if after[spec.width, spec.depth] - before[spec.width, spec.depth] >= config.front_gain
    ]


def _means(rows: pandas.DataFrame) -> dict[Size, float]:
    return {
        (int(width), int(depth)): float(top1)
        for (width, depth), top1 in rows.groupby(["width", "depth"])["top1"].mean().items()
    }


@dataclass(frozen=True)
class Point:
    """One schedule of one size, mean over seeds; `cost` is in the unit of the front."""

    times: int
    top1: float
    cost: float


class Front:
    """The reference's accuracy against cost, for every size.

    Args:
        table: The benchmark's table.
        unit: flops or seconds.
    """

    def __init__(self, table: pandas.DataFrame, reference: str, unit: str = "flops") -> None:
        self.points: dict[Size, list[Point]] = {}
        for times, rows in schedules(table, reference).items():
            for (width, depth), some in rows.groupby(["width", "depth"]):
                point = Point(times, float(some["top1"].mean()), cost(some, unit).each)
                self.points.setdefault((int(width), int(depth)), []).append(point)

    def best(self, size: Size) -> Point:
        """Return the most accurate schedule of a size."""
        return max(self.points[size], key=lambda point: point.top1)

    def cost_of(self, size: Size, top1: float) -> tuple[float, str]:
        """Compute what the reference pays for an accuracy at a size, linear in the logarithm of the cost in between.

        Returns:
            The cost, and `=`. With `<` even the shortest training is better. With `>` no training is as good, and the
            cost is that of the best one.
        """
        reached = [self.points[size][0]]  # without the schedules that a cheaper one beats
        for point in self.points[size][1:]:
            if point.top1 > reached[-1].top1:
                reached.append(point)
        if top1 < reached[0].top1:
            return reached[0].cost, "<"
        for before, after in pairwise(reached):
            if top1 <= after.top1:
                share = (top1 - before.top1) / (after.top1 - before.top1)
                return before.cost * (after.cost / before.cost) ** share, "="
        return reached[-1].cost, "=" if math.isclose(top1, reached[-1].top1) else ">"

    def plateau(self, table: pandas.DataFrame, reference: str) -> pandas.DataFrame:
        """Return the rows of the most accurate schedule of every size."""
        by_times = schedules(table, reference)
        best = [
            rows[(rows["width"] == size[0]) & (rows["depth"] == size[1])]
            for size in self.points
            for rows in [by_times[self.best(size).times]]
        ]
        return pandas.concat(best)

    def saving(self, arm: pandas.DataFrame, unit: str = "flops") -> tuple[float, str] | None:
        """Return how many times less an arm costs than the reference at the arm's own accuracy, over their sizes.

        Returns:
            The factor, and `=`, or `>` or `<` if it is a bound, or `~` if it is neither; None if they share no size.
        """
        sizes = _means(arm)
        shared = [size for size in sizes if size in self.points]
        if not shared:
            return None
        costs = [self.cost_of(size, sizes[size]) for size in shared]
        some = arm[[size in shared for size in zip(arm["width"], arm["depth"], strict=True)]]
        bounds = {bound for _, bound in costs} - {"="}
        factor = sum(one for one, _ in costs) / cost(some, unit).total(len(shared), search=False)
        return factor, "~" if len(bounds) > 1 else next(iter(bounds), "=")

"""The rules of a fair comparison, and whether a benchmark kept them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import pandas

from ray_learngene.compare.arms import ArmPlan
from ray_learngene.compare.front import Front, schedules
from ray_learngene.compare.runs import at_border, search_epochs, tuning_epochs
from ray_learngene.compare.significance import sampling_half
from ray_learngene.compare.summary import cost
from ray_learngene.config import BenchConfig
from ray_learngene.progress import counted

SIZES_APART = 3.0  # points that the reference's largest size must gain over its smallest
SEEDS = 5
_EQUAL = 1.1  # budgets that differ by less count as equal


class Rule(NamedTuple):
    """A rule, whether it was kept (None: unknown), and what was seen."""

    rule: str
    kept: bool | None
    seen: str


def rules(config: BenchConfig, table: pandas.DataFrame, arms: Sequence[ArmPlan]) -> list[Rule]:
    """Check a benchmark's table against the rules."""
    return [
        _front(config, table),
        _sizes_apart(config, table),
        _searched_long_enough(config, arms),
        _off_the_border(table, arms),
        Rule("no reported image chooses a setting", True, "searches validate on images held out of the training split"),
        _same_images(table),
        _same_budget(table, arms),
        _seeds(config, table),
        _test_images(config, table),
    ]


def _front(config: BenchConfig, table: pandas.DataFrame) -> Rule:
    rule = f"the reference trains until doubling brings less than {config.front_gain:g} points"
    found = schedules(table, config.reference)
    if len(found) < 2:
        return Rule(rule, False, f"`{config.reference}` has one schedule")
    front = Front(table, config.reference)
    left = []
    for (width, depth), points in front.points.items():
        gain = points[-1].top1 - points[-2].top1 if len(points) > 1 else float("inf")
        if gain >= config.front_gain:
            left.append(f"{width} × {depth} gained {gain:.1f}")
    longest = f"{max(found)} times the epochs"
    return Rule(rule, not left, f"up to {longest}; " + (", ".join(left) if left else "every size has ended"))


def _sizes_apart(config: BenchConfig, table: pandas.DataFrame) -> Rule:
    rule = f"the reference gains {SIZES_APART:g} points from the smallest to the largest size"
    points = Front(table, config.reference).points
    if len(points) < 2:
        return Rule(rule, None, "one size")
    front = Front(table, config.reference)
    gain = front.best(max(points)).top1 - front.best(min(points)).top1
    apart = gain >= SIZES_APART
    return Rule(rule, apart, f"{gain:+.1f} points" + ("" if apart else ": these images cannot tell sizes apart"))


def _searched_long_enough(config: BenchConfig, arms: Sequence[ArmPlan]) -> Rule:
    short = []
    for row in arms:
        runs = [one.epochs for one in row.distillations.values() if one and len(config.lrs) > 1]
        if row.arm.tune != "short" and len(config.lrs) > 1:
            runs.append(tuning_epochs(config, row))
        if runs and 2 * search_epochs(config, max(runs)) < max(runs):
            short.append(f"{row.name}: {search_epochs(config, max(runs))} of {max(runs)}")
    more = f" and {len(short) - 3} more arms" if len(short) > 3 else ""
    seen = f"shorter, in epochs: {', '.join(short[:3])}{more}" if short else "every search"
    return Rule("searches run at least half of what they decide", not short, seen)


def _off_the_border(table: pandas.DataFrame, arms: Sequence[ArmPlan]) -> Rule:
    rule = "the best learning rate is inside its grid"
    if "lrs" not in table:
        return Rule(rule, None, "the table does not say which rates were tried")
    border, fixed = [], []
    for row in arms:
        rows = table[table["arm"] == row.name]
        for lr, grid in (
            (rows["lr"].iloc[0], rows["lrs"].iloc[0]),
            (rows["distill_lr"].iloc[0], rows["distill_lrs"].iloc[0]),
        ):
            if grid is not None and at_border(lr, list(grid)):
                border.append(row.name)
            if grid is not None and len(grid) == 1:
                fixed.append(row.name)
    said = [f"at the border: {', '.join(dict.fromkeys(border))}"] if border else []
    said += [f"one rate, not searched: {', '.join(dict.fromkeys(fixed))}"] if fixed else []
    return Rule(rule, not said, "; ".join(said) or "every one")


def _same_images(table: pandas.DataFrame) -> Rule:
    rule = "the ancestry saw the images that the rivals saw"
    same = table["same_images"].iloc[0] if "same_images" in table else None
    seen = {
        True: "the same training images",
        False: "other training images: the teacher knows more or less than its rivals",
    }
    return Rule(rule, None if same is None else bool(same), "unknown" if same is None else seen[bool(same)])


def _same_budget(table: pandas.DataFrame, arms: Sequence[ArmPlan]) -> Rule:
    rule = "every arm has the same total budget"
    spent = {}
    for row in arms:
        some = table[table["arm"] == row.name]
        spent[row.name] = cost(some, "flops").total(len(some.drop_duplicates(["width", "depth"])), search=False)
    least, most = min(spent, key=lambda name: spent[name]), max(spent, key=lambda name: spent[name])
    text = f"from {spent[least]:.2e} FLOPs (`{least}`) to {spent[most]:.2e} (`{most}`), teacher included"
    return Rule(rule, spent[most] <= _EQUAL * spent[least], text)


def _seeds(config: BenchConfig, table: pandas.DataFrame) -> Rule:
    seeds = int(table["seed"].nunique())
    seen = f"{seeds}" + ("" if seeds >= SEEDS else ": intervals say what they can tell")
    return Rule(f"{SEEDS} seeds", seeds >= SEEDS, seen)


def _test_images(config: BenchConfig, table: pandas.DataFrame) -> Rule:
    rule = "all test images"
    if "test_images" not in table:
        return Rule(rule, None, "the table does not say how many")
    count = int(table["test_images"].iloc[0])
    half = sampling_half(float(table["top1"].mean()), count)
    seen = f"{counted(count, 'image')}; an accuracy is known to ± {half:.1f} points"
    return Rule(rule, config.val_share == 1, seen)

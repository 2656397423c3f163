"""The proof at a glance: every finished arm in a row, its accuracies by size and how many times less it costs."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pandas

from benchmarks.proof.against import MANY, saving
from benchmarks.proof.charges import Charges
from benchmarks.proof.table import REFERENCES, Row, table
from ray_learngene.compare.significance import paired

SCRATCH = REFERENCES[0]
NEAR = 2.0  # points below scratch's shortest schedule, on average; what is further off has no factor


def overview(rows: Sequence[Row], data: str, depths: Sequence[int], charges: Charges | None = None) -> list[str]:
    """Markdown, one row for each arm and schedule that has all depths; empty if none has.

    First comes each size alone, then learngenes before and after tuning.

    Args:
        charges: What runs cost in seconds; default: CPU seconds of their processes.
    """
    tuned, untuned = (_with_all(table(rows, data, charges, untuned=before), depths) for before in (False, True))
    if not len(tuned):
        return []
    lines = [
        f"| | {' | '.join(f'{depth} layers' for depth in depths)} | mean | above {SCRATCH}'s shortest | seeds | {MANY} "
        f"sizes: times fewer FLOPs than {SCRATCH} | with the teacher's training | times less time |",
        "|---" * (len(depths) + 7) + "|",
    ]
    alone = tuned["learngene"].isna()
    for name in [*tuned[alone]["arm"].drop_duplicates(), *tuned[~alone]["arm"].drop_duplicates()]:
        arm, before = (one[one["arm"] == name] for one in (tuned, untuned))
        said = f"{arm['trained'].iloc[0]}, {arm['epochs'].iloc[0]} epochs"
        if arm["learngene"].isna().all():
            lines.append(_line(said, depths, arm, tuned))
            continue
        if arm["trained"].iloc[0] in _first_of_their_learngene(tuned):
            lines.append(_line(f"{said}, untuned", depths, before, tuned))
        lines.append(_line(f"{said}, tuned", depths, arm, tuned))
    return lines


def _with_all(everything: pandas.DataFrame, depths: Sequence[int]) -> pandas.DataFrame:
    """The rows of some depths, of arms that have each of them."""
    if not len(everything):
        return everything
    some = everything[everything["depth"].isin(depths)]
    return some[some.groupby("arm")["depth"].transform("nunique") == len(depths)]


def _first_of_their_learngene(tuned: pandas.DataFrame) -> set[str]:
    """The arms whose learngene no arm before them has: others tune the same one otherwise."""
    return set(tuned[tuned["learngene"].notna()].drop_duplicates("learngene")["trained"])


def _line(said: str, depths: Sequence[int], arm: pandas.DataFrame, everything: pandas.DataFrame) -> str:
    scores = arm.groupby("depth")["top1"].mean()
    columns = [*(f"{scores[depth]:.1f}" for depth in depths), f"{scores.mean():.1f}"]
    columns += [_above(arm, everything), str(arm["seed"].nunique())]
    return f"| {said} | " + " | ".join([*columns, *_factors(arm, scores, everything)]) + " |"


def _above(arm: pandas.DataFrame, everything: pandas.DataFrame) -> str:
    """Mean difference from scratch's shortest schedule over the sizes, paired over the seeds that both have."""
    difference = paired(arm, everything[everything["arm"] == SCRATCH])
    if difference is None or arm["arm"].iloc[0] == SCRATCH:
        return ""
    return f"{difference.mean:+.1f}" + (f" ± {difference.half:.1f}" if difference.seeds > 1 else "")


def _factors(arm: pandas.DataFrame, scores: pandas.Series, everything: pandas.DataFrame) -> list[str]:
    if arm["trained"].iloc[0] == SCRATCH:
        return ["", "", ""]
    shortest = everything[everything["arm"] == SCRATCH].groupby("depth")["top1"].mean()
    if (scores - shortest).mean() < -NEAR:
        return ["too far below", "", ""]
    flops, seconds = (saving(everything, arm, unit, SCRATCH) for unit in ("flops", "seconds"))
    if flops is None or seconds is None:
        return ["", "", ""]
    ten, whole, faster = flops.times(MANY), flops.times(MANY, teacher=True), seconds.times(MANY)
    timed = f"{seconds.bound}{faster:.1f}" if math.isfinite(faster) else "not timed"
    return [f"{flops.bound}{ten:.1f}", f"{whole:.1f}", timed]

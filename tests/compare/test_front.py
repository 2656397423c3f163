"""The reference's front: what it pays for an accuracy, on tables small enough to add up by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_learngene.compare.front import Front, longer_name
from ray_learngene.compare.significance import Difference, paired, sampling_half
from tests.compare.test_summary import frame, learngene, rows


def schedule(times: int, **facts: Any) -> list[dict[str, Any]]:
    """Depth 2 and 4 cost 2 and 4 FLOPs in the shortest training."""
    units = {f"tune_{unit}": lambda depth, seed: float(times * depth) for unit in ("flops", "images", "seconds")}
    return rows(longer_name("scratch", times), **units, **facts)


TABLE = frame(schedule(1, top1=50.0), schedule(2, top1=60.0), schedule(4, top1=60.0), schedule(8, top1=64.0))


def test_what_the_reference_pays_for_an_accuracy() -> None:
    front = Front(TABLE, "scratch")
    assert [(point.times, point.top1, point.cost) for point in front.points[8, 4]] == [
        *((1, 50.0, 4.0), (2, 60.0, 8.0), (4, 60.0, 16.0), (8, 64.0, 32.0)),
    ]
    assert front.cost_of((8, 4), 50.0) == (4.0, "=")
    assert front.cost_of((8, 4), 55.0) == (pytest.approx(4 * math.sqrt(2)), "=")  # half way in the logarithm
    assert front.cost_of((8, 4), 60.0) == (8.0, "=")
    assert front.cost_of((8, 4), 62.0) == (pytest.approx(16.0), "=")  # between 8 and 32: the third point is beaten
    assert front.cost_of((8, 4), 64.0) == (32.0, "=")
    assert front.cost_of((8, 4), 70.0) == (32.0, ">") and front.cost_of((8, 4), 40.0) == (4.0, "<")
    assert front.best((8, 2)).times == 8


@given(st.floats(0, 100), st.floats(0, 100))
def test_more_accuracy_never_costs_less(one: float, other: float) -> None:
    front = Front(TABLE, "scratch")
    low, high = (front.cost_of((8, 2), top1)[0] for top1 in sorted((one, other)))
    assert low <= high * (1 + 1e-9)


def test_an_arm_is_held_against_the_front_at_its_own_accuracy() -> None:
    front = Front(TABLE, "scratch")
    arm = frame(rows("any", **learngene(), top1=60.0))  # 29 once, 2 and 4 for tuning
    assert front.saving(arm) == (pytest.approx((4 + 8) / (29 + 2 + 4)), "=")
    better = frame(rows("any", **learngene(), top1=lambda depth, seed: 70.0 if depth == 2 else 60.0))
    assert front.saving(better) == (pytest.approx((16 + 8) / 35), ">")
    mixed = frame(rows("any", **learngene(), top1=lambda depth, seed: 70.0 if depth == 2 else 40.0))
    assert front.saving(mixed) == (pytest.approx((16 + 4) / 35), "~")
    assert front.saving(arm.assign(depth=9)) is None


def test_differences_are_paired_over_seeds_with_students_interval() -> None:
    plateau = Front(TABLE, "scratch").plateau(TABLE, "scratch")
    assert set(plateau["arm"]) == {"scratch-x8"} and len(plateau) == 4
    arm = frame(rows("any", **learngene(), top1=lambda depth, seed: 66.0 + depth + seed))
    difference = paired(arm, plateau)
    # seeds 0 and 1 are 5 and 6 points better over the sizes: 12.706 is Student's quantile with one degree of freedom
    assert difference == Difference(5.5, pytest.approx(12.706 * math.sqrt(0.5) / math.sqrt(2), rel=1e-4), 2)
    assert not difference.significant and Difference.of([1.0]).half == math.inf
    assert paired(arm.assign(seed=7), plateau) is None
    assert sampling_half(50.0, 10_000) == pytest.approx(0.98)

"""A learning rate search goes on while its best rate is at the border."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_learngene.compare.runs import at_border
from ray_learngene.compare.searches import best_rate, next_rate, search_rates
from ray_learngene.errors import UserError


@given(
    st.lists(st.floats(-9, 3), min_size=1, max_size=3),  # where each owner's optimum is, as log2 of the rate
    st.integers(0, 5),
)
def test_a_search_ends_inside_its_grid_or_at_its_limit(optima: list[float], extensions: int) -> None:
    calls: list[Sequence[tuple[int, float]]] = []

    def measure(wanted: Sequence[tuple[int, float]]) -> dict[tuple[int, float], float]:
        calls.append(wanted)
        return {(owner, lr): abs(math.log2(lr) - optima[owner]) for owner, lr in wanted}

    grid = (0.125, 0.25, 0.5)
    found = search_rates(range(len(optima)), grid, extensions, measure)
    asked = [pair for wanted in calls for pair in wanted]
    assert len(asked) == len(set(asked))  # nothing is measured twice
    for losses in found.values():
        best = best_rate(losses, [])
        assert losses[best] == min(losses.values()) and set(grid) <= set(losses)
        assert not at_border(best, sorted(losses)) or len(losses) == len(grid) + extensions
        ratios = [b / a for a, b in zip(sorted(losses), sorted(losses)[1:], strict=False)]
        assert ratios == pytest.approx([2] * len(ratios), rel=0.01)


def test_a_rate_that_diverged_closes_the_grid() -> None:
    assert next_rate({0.1: 2.0, 0.2: 1.0}) == 0.4
    assert next_rate({0.1: 2.0, 0.2: 1.0, 0.4: math.inf}) is None
    assert next_rate({0.1: 1.0, 0.2: 2.0}) == 0.05
    assert next_rate({0.1: 1.0}) is None


def test_a_search_whose_rates_all_diverged_says_why() -> None:
    with pytest.raises(UserError, match="none of the learning rates 0.1, 0.2 works: the loss is nan"):
        best_rate({0.2: math.inf, 0.1: math.inf}, ["the loss is nan"])

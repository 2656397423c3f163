"""The search over widths and depths of stages finds what counting every size finds."""

from __future__ import annotations

from itertools import product

import pytest

from ray_learngene.errors import UserError
from ray_learngene.models import costs
from ray_learngene.models.budgets import Budget, candidates, largest_within
from ray_learngene.models.search import Grid, largest_of_grids, parse_stages
from ray_learngene.models.specs import PRESETS, Spec
from tests.models.sizes import small


def sizes(source: Spec, widths: tuple[int, ...], stages: tuple[tuple[int, ...], ...]) -> list[Spec]:
    """Every size of a grid, built as such."""
    found = []
    for width, depths in product(widths, product(*stages)):
        changed = {"depths": depths} if source.depths else {"depth": depths[0]}
        found.append(source.replace(width=width, heads=width * source.heads // source.width, **changed))
    return found


@pytest.mark.parametrize(
    ("source", "widths", "text"),
    [
        (small("convnext_atto"), (8, 16), "1-2/1/1-3/1"),
        (small("swin_tiny_patch4_window7_224"), (16,), "1-3/2,4"),
        (small("vit_small_patch14_reg4_dinov2"), (16, 24), "2-5"),
        (PRESETS["nano"], (48, 96), "1-9"),
    ],
)
def test_it_is_exact(source: Spec, widths: tuple[int, ...], text: str) -> None:
    stages = parse_stages(text, source)
    grids = [Grid.of(sizes(source, (width,), stages)[0], stages) for width in widths]
    every = candidates(sizes(source, widths, stages), costs.costs)
    for quantity in ("params", "macs", "memory"):
        values = sorted({one.costs[quantity] for one in every})
        for value in (values[0], values[len(values) // 2], values[-1]):
            unit = "B" if quantity == "memory" else ""
            for limits in (f"{quantity}<={value}{unit}", f"{quantity}<{value + 1}{unit},macs<=1G"):
                budget = Budget.parse(limits)
                found = largest_of_grids(budget, grids)
                assert found.costs == largest_within(budget, every).costs
                assert found.costs == costs.costs(found.spec)
    with pytest.raises(UserError, match="nothing meets it"):
        largest_of_grids(Budget.parse("params<=10"), grids)


def test_a_hundred_thousand_sizes_take_five_models(monkeypatch: pytest.MonkeyPatch) -> None:
    source, counted = small("convnext_atto"), list[Spec]()
    stages = parse_stages("1-18/1-18/1-18/1-18", source)
    original = costs.costs
    monkeypatch.setattr("ray_learngene.models.search.costs", lambda spec: counted.append(spec) or original(spec))
    found = largest_of_grids(Budget.parse("params<=200k,macs<=3M"), [Grid.of(source, stages)])
    assert len(counted) == 1 + len(stages) + 1  # the smallest, one for every stage, and the one that is chosen
    assert 190_000 < found.costs["params"] <= 200_000


@pytest.mark.parametrize(
    ("text", "message"),
    [("1-3/1-3", "has 4"), ("1-3/x/1/1", "cannot read"), ("1-99/1-99/1-99/1-99", "combinations")],
)
def test_what_cannot_be_searched_is_said(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_stages(text, small("convnext_atto"))


def test_latency_is_not_a_sum() -> None:
    source = small("convnext_atto")
    with pytest.raises(UserError, match="measured size by size"):
        largest_of_grids(Budget.parse("latency<=8ms"), [Grid.of(source, ((1,),) * 4)])

"""An equal arm costs what the arm costs that the budget names, teacher and tuning included."""

from __future__ import annotations

from typing import Any

import pytest

from ray_learngene.ancestry.model import Ancestry
from ray_learngene.compare.budgets import with_equal_budgets
from ray_learngene.config import BenchConfig
from ray_learngene.config.image import ImageShape
from ray_learngene.errors import UserError
from ray_learngene.models.build import build
from ray_learngene.models.specs import preset
from ray_learngene.training.flops import forward_flops
from tests.compare.test_plan import config

ARMS: dict[str, Any] = {
    "scratch": {"method": "scratch", "tune": "full", "epochs": 40},
    "sws": {"method": "sws", "equal": True},
    "each": {"method": "pretrained", "equal": True},
    "any-size": {"method": "any-size", "equal": True},
    "mimetic": {"method": "mimetic", "tune": "full", "equal": True},
}


def equalised(**changes: Any) -> BenchConfig:
    given = config(**{"arms": ARMS, "budget": "scratch", "batch_size": 64, **changes})
    return with_equal_budgets(given, Ancestry(build(preset("nano", classes=10, depth=4))), 640)


def test_epochs_are_those_that_the_budget_pays() -> None:
    arms = equalised().arms
    assert arms["scratch"].epochs == 40 and arms["mimetic"].epochs == 40  # the same models from labels
    depths, tuned = (2, 4, 6), 3
    # FLOPs of an image: three times a forward pass to train, one of the teacher
    forward = {
        depth: forward_flops(build(preset("nano", classes=10, depth=depth)), ImageShape.of(8)) for depth in (*depths, 6)
    }
    teacher = forward_flops(build(preset("nano", classes=10, depth=4)), ImageShape.of(8))
    sizes = 3 * sum(forward[depth] for depth in depths)
    left = (40 - tuned) * sizes
    assert arms["sws"].epochs == round(left / (3 * forward[6] + teacher))
    assert arms["each"].epochs == round(left / (sizes + 3 * teacher))
    shallow = arms["any-size"].epochs
    assert shallow is not None and shallow > arms["sws"].epochs  # its steps train fewer layers


def test_a_budget_below_an_arms_tuning_is_refused() -> None:
    few = {**ARMS, "scratch": {**ARMS["scratch"], "epochs": 3}}
    with pytest.raises(UserError, match="arm 'sws': its tuning alone costs more than all of 'scratch'"):
        equalised(arms=few)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"budget": None}, "an equal arm needs a budget"),
        ({"budget": "sws"}, "budget 'sws' is none of the arms that are not equal"),
        ({"arms": {**ARMS, "sws": {**ARMS["sws"], "epochs": 3}}}, "epochs of an equal arm follow from the budget"),
    ],
)
def test_budgets_that_make_no_sense_are_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        equalised(**changes)

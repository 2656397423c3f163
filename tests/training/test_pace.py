"""The pace of a training is measured on steps that stand for all of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ray_learngene.methods.elastic import draw_step
from ray_learngene.methods.registry import create_method
from ray_learngene.models.specs import PRESETS
from ray_learngene.training.pace import spread_over_training

SPEC = PRESETS["nano"]


def mean_depth(module: Any, steps: int, of: int) -> float:
    """Mean depth of the sub-models that the first steps of a training sample, its very first one left out."""
    depths: list[int] = []
    for step in range(1, steps + 1):
        draw_step(module, 0, step, of)
        depths += [spec.depth for spec in module.drawn]
    return sum(depths) / len(depths)


@pytest.mark.parametrize("method", ["any-size", "supernet:growth=3"])
def test_a_few_measured_steps_cost_what_those_of_a_whole_training_do(method: str) -> None:
    module = create_method(method).auxiliary(SPEC)
    whole = mean_depth(module, 400, of=400)
    assert mean_depth(module, 10, of=44) < 0.8 * whole
    spread_over_training(module, 8, torch.device("cpu"))
    assert mean_depth(module, 10, of=44) == pytest.approx(whole, rel=0.1)
    assert all(parameter.grad is None for parameter in module.parameters())  # of the passes that warm it up


def test_a_model_of_one_size_is_measured_as_it_is() -> None:
    module = create_method("sws").auxiliary(SPEC)
    spread_over_training(module, 8, torch.device("cpu"))
    assert not hasattr(module, "draw")

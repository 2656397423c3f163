"""Fitting an adapter to its size, whatever the size of the image set."""

from __future__ import annotations

import math

import pytest
import torch

from ray_learngene.config import AugmentationConfig, DataConfig, OptimizationConfig
from ray_learngene.data.open import open_image_sets
from ray_learngene.data.pipeline import ImagePipeline
from ray_learngene.methods.registry import create_method
from ray_learngene.models.preprocessing import Preprocessing
from ray_learngene.models.specs import PRESETS
from ray_learngene.training import fitting
from ray_learngene.training.batches import Batches
from ray_learngene.training.clock import Clock
from ray_learngene.training.lockstep import train
from ray_learngene.training.optimizers import create_optimizer
from ray_learngene.training.world import World

NANO, CPU = PRESETS["nano"], torch.device("cpu")


@pytest.mark.parametrize(("batch_size", "steps"), [(64, 5), (512, 3)], ids=["within an epoch", "over two"])
def test_the_learning_rate_has_fallen_where_fitting_ends(
    batch_size: int, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    optimizers: list[torch.optim.Optimizer] = []

    def kept(*arguments: object) -> torch.optim.Optimizer:
        optimizers.append(create_optimizer(*arguments))  # type: ignore[arg-type]
        return optimizers[-1]

    monkeypatch.setattr(fitting, "create_optimizer", kept)
    sets, config = open_image_sets(DataConfig(data="digits")), OptimizationConfig(batch_size=batch_size, min_lr=1e-6)
    preprocessing = Preprocessing(image_size=8, mean=(0.5,) * 3, std=(0.5,) * 3, crop_pct=1.0, interpolation="bicubic")
    images = ImagePipeline(sets.train, sets.val, preprocessing, AugmentationConfig())
    method = create_method(f"wave:fit={steps}:fit_lr=0.01")
    adapter = method.adapter(method.extract(method.auxiliary(NANO)), NANO.replace(depth=2), seed=0)
    assert adapter is not None
    train(
        [fitting.Fitting(adapter, images, config, clock=Clock(CPU), autocast=None)], Batches(images, config, World(CPU))
    )
    last = 1e-6 + (0.01 - 1e-6) * (1 + math.cos(math.pi * (steps - 1) / steps)) / 2  # the cosine's last of N steps
    assert [group["lr"] for group in optimizers[0].param_groups] == pytest.approx([last, last])

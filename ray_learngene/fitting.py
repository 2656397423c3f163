"""Fitting a method's adapter to a target size before it is a plain model: the second phase of WAVE and LiGO."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray_learngene.torchvision_cpu  # noqa: F401  isort:skip  (before the first timm import)
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from ray_learngene.config import OptimizationConfig
from ray_learngene.data.images import Images
from ray_learngene.engine import TorchEngine
from ray_learngene.errors import Interrupted
from ray_learngene.finite_guard import FiniteGuard, NonFiniteLoss
from ray_learngene.flops import training_flops
from ray_learngene.methods.base import Adapter
from ray_learngene.objectives import LabelObjective
from ray_learngene.optimizers import create_optimizer, create_schedule
from ray_learngene.steps import Stepper
from ray_learngene.stream import Coroutine, Need, Part, Phase


@dataclass(frozen=True)
class Fit:
    """What fitting cost; all zero where nothing was fitted."""

    steps: int = 0
    images: int = 0
    flops: int = 0
    seconds: float = 0.0

    def columns(self) -> dict[str, Any]:
        return {f"fit_{name}": value for name, value in vars(self).items()}


def fitting(
    adapter: Adapter,
    images: Images,
    config: OptimizationConfig,
    *,
    device: torch.device,
    autocast: torch.dtype | None,
    smoothing: float = 0.0,
    clock: Callable[[], float] = time.monotonic,
) -> Coroutine[tuple[VisionTransformer, Fit]]:
    """Train an adapter for its `fit_steps` by cross-entropy, and make it a plain model.

    Order and augmentation of the images are those of the training that follows; the learning rate falls from the
    adapter's `fit_lr` by a cosine, without warm-up.

    Raises:
        Interrupted: no batches were sent for a step; fitting starts anew another time.
        NonFiniteLoss: the method's `fit_lr` is too high.
    """
    assert isinstance(adapter, nn.Module)
    began = clock()
    steps_per_epoch = max(1, len(images.train) // config.batch_size)
    settings = config.model_copy(
        update={"epochs": 1, "lr": adapter.fit_lr * 512 / config.batch_size, "warmup_epochs": 0}
    )
    flops = training_flops(
        adapter, images.preprocessing.image_size, batch=config.batch_size, steps=adapter.fit_steps, seed=config.seed
    )
    adapter.to(device)
    optimizer = create_optimizer(adapter, settings)
    guard = FiniteGuard(device)
    take_step = Stepper(
        TorchEngine(
            adapter, optimizer, accumulation=config.accumulation, clip_grad=config.clip_grad, autocast=autocast
        ),
        LabelObjective(smoothing),
        optimizer,
        create_schedule(optimizer, settings, adapter.fit_steps),  # its end is that of fitting
        adapter.fit_steps,
        device,
        guard,
        micro_batch=config.batch_size / config.accumulation,
        seed=config.seed,
    )
    try:
        for step in range(adapter.fit_steps):
            micro_batches = yield Need(Phase.FIT, step, Part.STEP)
            if micro_batches is None:
                raise Interrupted(0, config.epochs * steps_per_epoch)
            lr = take_step(step, micro_batches).lr
        guard.check(adapter.fit_steps, lr)
    except NonFiniteLoss:
        raise NonFiniteLoss(
            f"the loss is not finite while fitting to the size at learning rate {adapter.fit_lr:g}: lower the method's "
            "option fit_lr, as in wave:fit_lr=1e-3"
        ) from None
    cost = Fit(adapter.fit_steps, adapter.fit_steps * config.batch_size, flops, round(clock() - began, 3))
    return adapter.cpu().materialise(), cost

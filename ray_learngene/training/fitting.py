"""Adapter fitting: fit a method's adapter to a target size before it becomes a plain model (WAVE's phase 2, LiGO)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import nn

from ray_learngene.config import OptimizationConfig
from ray_learngene.data.pipeline import ImagePipeline
from ray_learngene.errors import Interrupted
from ray_learngene.methods.base import Adapter
from ray_learngene.models.checkpointing import checkpoint_gradients
from ray_learngene.training.clock import Clock
from ray_learngene.training.engine import TorchEngine
from ray_learngene.training.finite_guard import FiniteGuard, NonFiniteLoss
from ray_learngene.training.flops import training_flops
from ray_learngene.training.objectives import LabelObjective
from ray_learngene.training.optimizers import ADAMW, create_optimizer, create_schedule
from ray_learngene.training.step import Batch, Stepper

TICK_SECONDS = 1


@dataclass(frozen=True)
class Fit:
    """The cost of adapter fitting; all zero if nothing was fitted."""

    steps: int = 0
    images: int = 0
    flops: int = 0
    seconds: float = 0.0
    device_seconds: float = 0.0

    def columns(self) -> dict[str, Any]:
        return {f"fit_{name}": value for name, value in vars(self).items()}


class Fitting:
    """Trains an adapter for its `fit_steps` by cross-entropy, then turns it into a plain model.

    Images have the order and augmentation of the training that follows. The learning rate falls from the adapter's
    `fit_lr` by a cosine, without warm-up. Fitting writes no checkpoints.

    Args:
        report: Called about every second with the fitting step; the training step is 0.

    Raises:
        NonFiniteLoss: the loss of a step is not finite; the method's `fit_lr` is too high.
    """

    score_due = False

    def __init__(
        self,
        adapter: Adapter,
        images: ImagePipeline,
        config: OptimizationConfig,
        *,
        clock: Clock,
        autocast: torch.dtype | None,
        smoothing: float = 0.0,
        report: Callable[[dict[str, Any]], None] = lambda metrics: None,
    ) -> None:
        assert isinstance(adapter, nn.Module)
        self.adapter, self.config, self.clock = adapter, config, clock
        self.step, self.total_steps = 0, adapter.fit_steps
        self._began = clock.spent()
        self._interrupted = Interrupted(0, config.epochs * max(1, len(images.train) // config.batch_size))
        self._report, self._ticked = report, time.monotonic()
        settings = config.model_copy(
            update={"epochs": 1, "lr": adapter.fit_lr * 512 / config.batch_size, "warmup_epochs": 0, **ADAMW}
        )  # `fit_lr` is one of AdamW
        self._flops = training_flops(
            adapter, images.preprocessing.image_size, batch=config.batch_size, steps=adapter.fit_steps, seed=config.seed
        )
        adapter.to(clock.device)
        if config.grad_checkpointing:
            checkpoint_gradients(adapter)
        optimizer = create_optimizer(adapter, settings)
        self._guard = FiniteGuard(clock.device)
        self._stepper = Stepper(
            TorchEngine(
                adapter, optimizer, accumulation=config.accumulation, clip_grad=config.clip_grad, autocast=autocast
            ),
            LabelObjective(smoothing),
            optimizer,
            create_schedule(optimizer, settings, adapter.fit_steps),  # it ends with the last fitting step
            adapter.fit_steps,
            clock.device,
            self._guard,
            micro_batch=config.batch_size / config.accumulation,
            seed=config.seed,
        )

    def take_step(self, micro_batches: Iterable[Batch]) -> None:
        """Take the next step."""
        try:
            lr = self._stepper(self.step, micro_batches).lr
            self.step += 1
            self._tick()
            if self.step == self.total_steps:
                self._guard.check(self.step, lr)
        except NonFiniteLoss:
            raise NonFiniteLoss(
                f"the loss is not finite while fitting to the size at learning rate {self.adapter.fit_lr:g}: lower the "
                "method's option fit_lr, as in wave:fit_lr=1e-3"
            ) from None

    def _tick(self) -> None:
        """Report about every second how far fitting is; training has not begun."""
        if time.monotonic() - self._ticked > TICK_SECONDS:
            begun = {"epoch": 0.0, "epochs": self.config.epochs, "step": 0, "total_steps": self._interrupted.total}
            self._report({**begun, "fit_step": self.step, "fit_steps": self.total_steps})
            self._ticked = time.monotonic()

    def result(self) -> tuple[nn.Module, Fit]:
        """Return the plain model, on the CPU, and the cost of fitting."""
        steps, images = self.total_steps, self.total_steps * self.config.batch_size
        cost = Fit(steps, images, self._flops, *(self.clock.spent() - self._began).round(3).tolist())
        return self.adapter.cpu().materialise(), cost

    def interrupt(self) -> NoReturn:
        """Raise `Interrupted`; a resumed run starts fitting again."""
        raise self._interrupted

    def begin_interrupt(self) -> None: ...
    def score(self, batch: Batch, split: int) -> None: ...
    def end_score(self) -> None: ...
    def save_if_due(self) -> None: ...
    def finish(self) -> None: ...

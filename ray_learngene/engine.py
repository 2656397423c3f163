"""One training step, the loop over it, and evaluation: used by everything that trains.

Knows neither Ray nor storage nor methods. An engine is what `deepspeed.initialize` returns or `TorchEngine`, which has
the same calls for one plain process; the step is written once for both.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import ray_learngene.torchvision_cpu  # noqa: F401  isort:skip  (before the first timm import)
import numpy as np
import safetensors.torch
import torch
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn

from ray_learngene.config import OptimizationConfig
from ray_learngene.errors import RunError
from ray_learngene.losses import DistillationLoss, label_loss

Batch = tuple[Tensor, Tensor]
# `[B, classes]`, or several of them from an auxiliary model that is several models in one step
Logits = Tensor | tuple[Tensor, ...]
ENGINE_FILE = "engine.safetensors"


class Engine(Protocol):
    """The calls that training makes, of a DeepSpeed engine and of `TorchEngine` alike."""

    module: nn.Module

    def __call__(self, images: Tensor) -> Logits: ...
    def backward(self, loss: Tensor) -> Any: ...
    def step(self) -> Any: ...
    def train(self, mode: bool = True) -> Any: ...
    def eval(self) -> Any: ...


class Objective(Protocol):
    """Loss of one micro-batch: `loss` is what is minimised, other entries are reported."""

    def __call__(self, model: Engine, images: Tensor, targets: Tensor) -> dict[str, Tensor]: ...


class TorchEngine:
    """One plain process: autocast, accumulation, clipping and the optimizer step behind DeepSpeed's calls."""

    def __init__(
        self,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        accumulation: int = 1,
        clip_grad: float = 0.0,
        autocast: torch.dtype | None = None,
    ) -> None:
        self.module, self.optimizer = module, optimizer
        self.accumulation, self.clip_grad, self.autocast = accumulation, clip_grad, autocast
        self.device = next(module.parameters()).device
        self._micro_batches = 0

    def __call__(self, images: Tensor) -> Logits:
        with torch.autocast(self.device.type, self.autocast, enabled=self.autocast is not None):
            return self.module(images)

    def backward(self, loss: Tensor) -> None:
        (loss / self.accumulation).backward()

    def step(self) -> None:
        """Count a micro-batch; on the last of an accumulation, clip, step and clear the gradients."""
        self._micro_batches += 1
        if self._micro_batches % self.accumulation:
            return
        if self.clip_grad > 0:
            nn.utils.clip_grad_norm_(self.module.parameters(), self.clip_grad)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def train(self, mode: bool = True) -> None:
        self.module.train(mode)

    def eval(self) -> None:
        self.module.eval()

    def save(self, folder: Path) -> None:
        """Write weights and optimizer state as safetensors (no pickle)."""
        state = {f"model.{name}": tensor for name, tensor in self.module.state_dict().items()}
        for index, moments in self.optimizer.state_dict()["state"].items():
            state.update({f"optimizer.{index}.{name}": tensor for name, tensor in moments.items()})
        safetensors.torch.save_file({name: tensor.contiguous() for name, tensor in state.items()}, folder / ENGINE_FILE)

    def load(self, folder: Path) -> None:
        """Read what `save` wrote; the optimizer's settings stay those of this run."""
        state = safetensors.torch.load_file(folder / ENGINE_FILE, device=str(self.device))
        moments: dict[int, dict[str, Tensor]] = {}
        for name, tensor in state.items():
            owner, _, rest = name.partition(".")
            if owner == "optimizer":
                index, _, key = rest.partition(".")
                moments.setdefault(int(index), {})[key] = tensor
        self.module.load_state_dict({k.removeprefix("model."): v for k, v in state.items() if k.startswith("model.")})
        self.optimizer.load_state_dict({"state": moments, "param_groups": self.optimizer.state_dict()["param_groups"]})


def mean_loss(logits: Logits, loss: Callable[[Tensor], dict[str, Tensor]]) -> dict[str, Tensor]:
    """The loss of logits, averaged where there are several."""
    if isinstance(logits, Tensor):
        return loss(logits)
    losses = [loss(one) for one in logits]
    return {name: torch.stack([each[name] for each in losses]).mean() for name in losses[0]}


class LabelObjective:
    """Cross-entropy with the labels."""

    def __init__(self, smoothing: float = 0.0) -> None:
        self.smoothing = smoothing

    def __call__(self, model: Engine, images: Tensor, targets: Tensor) -> dict[str, Tensor]:
        return mean_loss(model(images), lambda logits: {"loss": label_loss(logits, targets, self.smoothing)})


class DistillationObjective:
    """Distillation from a frozen ancestry model that sees the very images the student sees."""

    def __init__(
        self,
        ancestry: nn.Module,
        loss: DistillationLoss,
        *,
        smoothing: float = 0.0,
        labels: bool = True,
        autocast: torch.dtype | None = None,
    ) -> None:
        self.ancestry = ancestry.eval().requires_grad_(False)
        self.loss, self.smoothing, self.labels, self.autocast = loss, smoothing, labels, autocast

    def __call__(self, model: Engine, images: Tensor, targets: Tensor) -> dict[str, Tensor]:
        with torch.no_grad(), torch.autocast(images.device.type, self.autocast, enabled=self.autocast is not None):
            teacher = self.ancestry(images)
        labels = targets if self.labels else None
        return mean_loss(model(images), lambda logits: self.loss(logits, teacher, labels, self.smoothing))


def draw_step(module: nn.Module, seed: int, step: int, total_steps: int) -> None:
    """Let a module that is another model in every step draw which one it is in this; alike on all workers."""
    draw = getattr(module, "draw", None)
    if draw is not None:
        draw(np.random.default_rng([seed, step]), (step or total_steps) / total_steps)


def resolve_device() -> torch.device:
    """The accelerator of this process where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def resolve_precision(precision: str, device: torch.device) -> torch.dtype | None:
    """The autocast dtype of a `precision` setting; None is fp32. `auto` is bf16 where the GPU computes in it."""
    if precision == "auto":
        return torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else None
    return torch.bfloat16 if precision == "bf16" else None


def learning_rate(config: OptimizationConfig) -> float:
    """The peak learning rate of a configuration: its `lr` scaled by the global batch over 512."""
    return config.lr * config.batch_size / 512


def create_optimizer(module: nn.Module, config: OptimizationConfig) -> torch.optim.Optimizer:
    """Fused AdamW without weight decay on biases, norms and the position embedding."""
    return create_optimizer_v2(
        module, opt="adamw", lr=learning_rate(config), weight_decay=config.weight_decay, fused=True
    )


def create_schedule(
    optimizer: torch.optim.Optimizer, config: OptimizationConfig, steps_per_epoch: int
) -> Scheduler | None:
    """Linear warm-up, then a cosine to `min_lr`; a function of the step alone. None where there is nothing to train."""
    if config.epochs == 0:
        return None
    schedule, _ = create_scheduler_v2(
        optimizer,
        sched="cosine",
        num_epochs=config.epochs,
        warmup_epochs=config.warmup_epochs,  # type: ignore[arg-type]  # fractions work
        warmup_lr=config.warmup_lr,
        min_lr=min(config.min_lr, learning_rate(config)),
        step_on_epochs=False,
        updates_per_epoch=steps_per_epoch,
    )
    return schedule


@dataclass
class Step:
    """What one optimizer step reports. `losses` stay on the device: reading them waits for it."""

    number: int
    losses: dict[str, Tensor]
    lr: float


class NonFiniteLoss(RunError):
    """The loss became NaN or infinite; the step was not taken."""


class FiniteGuard:
    """Sees every loss; a non-finite one ends training and never reaches a checkpoint.

    On the CPU the step that would use it is not taken. On an accelerator reading a loss waits for the device, so the
    verdict is kept there and read by `check`, before a checkpoint and at every epoch's end.

    Args:
        total: Adds a tensor up over all workers in place, so that all of them stop at the same step.
    """

    def __init__(self, device: torch.device, total: Callable[[Tensor], Any] = lambda tensor: None) -> None:
        self.immediate = device.type == "cpu"
        self.total = total
        self.bad = torch.zeros((), device=device)

    def watch(self, losses: dict[str, Tensor], step: int, lr: float) -> None:
        self.bad += ~torch.isfinite(losses["loss"].detach())
        if self.immediate:
            self.check(step, lr)

    def check(self, step: int, lr: float) -> None:
        """Raise `NonFiniteLoss` if any loss so far was not finite. All workers call it at the same step."""
        bad = self.bad.clone()
        self.total(bad)
        if bad:
            raise NonFiniteLoss(
                f"the loss is not finite at or before step {step} (learning rate {lr:.2e}): lower --lr, lengthen "
                "--warmup-epochs, set --clip-grad 1 or train with --precision fp32; the last checkpoint is good"
            )


def train_steps(
    engine: Engine,
    batches: Iterable[Batch],
    objective: Objective,
    optimizer: torch.optim.Optimizer,
    schedule: Scheduler | None,
    *,
    total_steps: int,
    start_step: int = 0,
    accumulation: int = 1,
    device: torch.device,
    seed: int = 0,
    rank: int = 0,
    ema: ModelEmaV3 | None = None,
    guard: FiniteGuard,
) -> Iterator[Step]:
    """Train from `start_step` to `total_steps`, yielding after every optimizer step.

    Every step seeds torch from (seed, rank, step), so a resumed run draws the same stochastic depth as an undisturbed
    one.

    Args:
        batches: Micro-batches of this worker, from `start_step` on.

    Raises:
        NonFiniteLoss: see `FiniteGuard`.
    """
    stream = iter(batches)
    for step in range(start_step, total_steps):
        engine.train()
        torch.manual_seed(int(np.random.SeedSequence([seed, rank, step]).generate_state(1)[0]))
        if schedule is not None:
            schedule.step_update(step)
        lr = optimizer.param_groups[0]["lr"]
        draw_step(engine.module, seed, step, total_steps)
        for _ in range(accumulation):
            images, targets = next(stream)
            losses = objective(engine, images.to(device, non_blocking=True), targets.to(device, non_blocking=True))
            guard.watch(losses, step + 1, lr)
            engine.backward(losses["loss"])
            engine.step()
        if ema is not None:
            ema.update(engine.module, step)
        yield Step(step + 1, {name: loss.detach() for name, loss in losses.items()}, lr)


@dataclass
class Scores:
    """Sums over evaluated images, so that workers' scores add up."""

    correct: float = 0.0
    loss: float = 0.0
    images: float = 0.0

    @property
    def top1(self) -> float:
        """Share of images whose highest logit is the label, in percent."""
        return 100 * self.correct / self.images if self.images else math.nan

    @property
    def mean_loss(self) -> float:
        return self.loss / self.images if self.images else math.nan


@torch.no_grad()
def evaluate(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    device: torch.device,
    autocast: torch.dtype | None = None,
    ancestry: nn.Module | None = None,
) -> Scores:
    """Score a model in evaluation mode; it is left in that mode.

    Args:
        ancestry: Where given, its decisions stand in for the labels, and top-1 is the agreement with it.
    """
    model.eval()
    sums = torch.zeros(3, dtype=torch.float64, device=device)
    for images, targets in batches:
        images, targets = images.to(device, non_blocking=True), targets.to(device, non_blocking=True)
        with torch.autocast(device.type, autocast, enabled=autocast is not None):
            logits = model(images).float()
            if ancestry is not None:
                targets = ancestry(images).argmax(dim=-1)
        correct = (logits.argmax(dim=-1) == targets).sum()
        sums += torch.stack(
            [correct, label_loss(logits, targets) * len(targets), torch.tensor(len(targets), device=device)]
        )
    return Scores(*sums.tolist())

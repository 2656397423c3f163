"""One optimizer step, shared by every training and engine."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from timm.scheduler.scheduler import Scheduler
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor

from ray_learngene.methods.elastic import draw_step
from ray_learngene.training.engine import Engine
from ray_learngene.training.finite_guard import FiniteGuard
from ray_learngene.training.objectives import Objective
from ray_learngene.training.optimizers import current_rate
from ray_learngene.training.soft_labels import SoftLabels

# images, targets and, if the ancestry model's logits come with the batch, soft labels
Batch = tuple[Tensor, Tensor] | tuple[Tensor, Tensor, SoftLabels]


@dataclass
class Step:
    """The report of one optimizer step. `losses` stay on the device: reading them waits for it.

    Attributes:
        answers_read: Images whose logits were cached.
    """

    number: int
    losses: dict[str, Tensor]
    lr: float
    answers_read: int = 0


@dataclass
class Stepper:
    """Takes the `total_steps` optimizer steps of a training.

    Every step seeds torch from (seed, rank, step). A resumed run therefore samples the same stochastic depth as an
    uninterrupted one, and so does a model in lockstep with others.

    Attributes:
        micro_batch: Mean number of images of a micro-batch over all ranks. A micro-batch of another size is weighted by
            its number of images, as in one undivided batch. None weights all micro-batches equally.
    """

    engine: Engine
    objective: Objective
    optimizer: torch.optim.Optimizer
    schedule: Scheduler | None
    total_steps: int
    device: torch.device
    guard: FiniteGuard
    micro_batch: float | None = None
    seed: int = 0
    rank: int = 0
    ema: ModelEmaV3 | None = None

    def __call__(self, step: int, micro_batches: Iterable[Batch]) -> Step:
        """Take step `step`, counted from 0, on its micro-batches.

        Raises:
            NonFiniteLoss: see `FiniteGuard`.
        """
        engine, device = self.engine, self.device
        if not engine.module.training:  # visiting all submodules costs half a percent of a small model's step
            engine.train()
        _seed(int(np.random.SeedSequence([self.seed, self.rank, step]).generate_state(1)[0]), device)
        if self.schedule is not None:
            self.schedule.step_update(step)
        lr = current_rate(self.optimizer)
        draw_step(engine.module, self.seed, step, self.total_steps)
        read = 0
        for images, targets, *taught in micro_batches:
            read += sum(len(answers) for answers in taught if not answers.asked)
            images, targets = images.to(device, non_blocking=True), targets.to(device, non_blocking=True)
            answers = [each.to(device, non_blocking=True) for each in taught]
            losses = self.objective(engine, images, targets, *answers)
            self.guard.watch(losses, step + 1, lr)
            loss = losses["loss"]
            if self.micro_batch is not None and len(targets) != self.micro_batch:
                loss = loss * (len(targets) / self.micro_batch)
            engine.backward(loss)
            engine.step()
        if self.ema is not None:
            self.ema.update(engine.module, step)
        return Step(step + 1, {name: loss.detach() for name, loss in losses.items()}, lr, read)


def _seed(seed: int, device: torch.device) -> None:
    """Seed torch's generators of the CPU and of a device, with the bits of `torch.manual_seed`.

    That one also queues a seed, with a formatted stack, for every kind of device that is not there: one to two percent
    of a small model's step.
    """
    torch.default_generator.manual_seed(seed)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(seed)

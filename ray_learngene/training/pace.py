"""The pace of a training: a few of its steps, measured without keeping anything."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ray_learngene.errors import Interrupted
from ray_learngene.methods.elastic import ElasticVisionTransformer
from ray_learngene.models.specs import Spec
from ray_learngene.training.batches import Batches
from ray_learngene.training.clock import Clock, Seconds
from ray_learngene.training.lockstep import Trains, train
from ray_learngene.training.trainer import Trainer

WARM_UP, LEAST, MOST = 2, 4, 40  # steps of a measurement
_GOLDEN_RATIO = (5**0.5 - 1) / 2
SECONDS = 2.0  # after which a measurement ends, if it has the least steps; on a CPU those of the process
BUSY = 10  # times as many by the clock end it too


class NoCheckpoints:
    """Checkpoints of a training that is not kept."""

    @contextmanager
    def latest(self) -> Iterator[Path | None]:
        yield None

    def save(self, write: Callable[[Path], None], metrics: dict[str, Any]) -> None: ...
    def finish(self) -> None: ...
    def wait(self) -> None: ...
    def busy(self) -> bool:
        return False


def marks(trains: Trains, batches: Any, clock: Clock) -> list[Seconds]:
    """Return what was spent before every step of a training and after its last one; it ends after some steps."""
    found, began = list[Seconds](), clock.spent()

    def stop(step: int) -> bool:
        found.append(clock.spent())
        seconds, of_device = found[-1] - began  # by the clock alone, a busy machine would end it after the least steps
        enough = max(of_device, seconds / BUSY) > SECONDS
        return (len(found) > WARM_UP + LEAST and bool(enough)) or len(found) > MOST

    with suppress(Interrupted):
        train([trains], batches, stop=stop)
        found.append(clock.spent())  # it has come to its end
    return found


def spread_over_training(module: nn.Module, images: int, device: torch.device) -> None:
    """Make the first steps of an elastic module stand for a whole training.

    Where sub-models grow as training proceeds, the first steps cost less than the others. Here they sample those of all
    of it: multiples of the golden ratio cover the training evenly, after however many steps the measurement ends. Every
    sub-model trains once before, as long as there is time: its first pass at a number of images takes longer, forward
    and backward, and a measurement has many first passes for its few steps.

    Args:
        images: Of a micro-batch.
    """
    elastic = next((one for one in module.modules() if isinstance(one, ElasticVisionTransformer)), None)
    if elastic is None:
        return
    draw, count, passed = elastic.draw, itertools.count(1), set[tuple[Spec, int]]()
    blank = torch.zeros(images, *elastic.spec.image, device=device)
    elastic.train()
    began = time.monotonic()
    for step in range(MOST):
        draw(np.random.default_rng(step), step / MOST)
        if passed >= (passes := set(elastic.passes(images))):
            continue
        if time.monotonic() - began > SECONDS:
            break
        passed |= passes
        logits = elastic(blank)
        torch.stack([one.sum() for one in (logits if isinstance(logits, tuple) else (logits,))]).sum().backward()
    elastic.zero_grad(set_to_none=True)
    elastic.draw = lambda generator, done: draw(generator, next(count) * _GOLDEN_RATIO % 1)  # type: ignore[method-assign]


def score_once(trainer: Trainer, batches: Batches) -> None:
    """Score one batch of a training whose first scoring is to be measured, as the first pass takes longer."""
    for split, loader in batches.scored():
        for batch in itertools.islice(loader, 1):
            trainer.score(batch, split)


def step_seconds(marks: list[Seconds], per_epoch: int, score: Seconds | float) -> Seconds:
    """Mean seconds of a step after the warm-up.

    Args:
        per_epoch: Steps after which the validation split is scored.
        score: Seconds of that.
    """
    spans = [after - before for before, after in itertools.pairwise(marks)]
    own = [span - score * ((number + 1) % per_epoch == 0) for number, span in enumerate(spans)]
    own = own[WARM_UP:] or own
    return np.maximum(0.0, np.mean(own, axis=0)) if own else np.zeros(2)


@dataclass(frozen=True)
class DistillationCost:
    """What a distillation will cost.

    Attributes:
        learngene: Its name.
        seconds: Of each worker, by the clock.
        device_seconds: CPU or GPU seconds of all workers together.
        share: GPUs, or CPUs, of a worker.
        device: Where the steps were measured.
        load: Mean number of processes that wanted a CPU there, over the last minute.
        price_per_hour: Of one GPU, or of one CPU where there is no GPU.
    """

    learngene: str
    seconds: float
    device_seconds: float
    workers: int
    share: float
    device: str
    load: float
    price_per_hour: float | None

    @property
    def device_hours(self) -> float:
        """GPU-hours, or CPU-hours where there is no GPU."""
        return self.share * self.workers * self.seconds / 3600

    @property
    def price(self) -> float | None:
        """Money, in the currency of `price_per_hour`."""
        return None if self.price_per_hour is None else self.device_hours * self.price_per_hour

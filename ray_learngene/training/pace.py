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
from ray_learngene.training.clock import Clock
from ray_learngene.training.lockstep import Trains, train

WARM_UP, LEAST, MOST = 2, 4, 40  # steps of a measurement
_GOLDEN_RATIO = (5**0.5 - 1) / 2
SECONDS = 2.0  # after which a measurement ends, if it has the least steps


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


def marks(trains: Trains, batches: Any, clock: Clock) -> list[float]:
    """Return the clock before every step of a training and after its last one; it ends after some steps."""
    found: list[float] = []
    began = time.monotonic()

    def stop(step: int) -> bool:
        found.append(clock())
        enough = len(found) > WARM_UP + LEAST and time.monotonic() - began > SECONDS
        return enough or len(found) > MOST

    with suppress(Interrupted):
        train([trains], batches, stop=stop)
        found.append(clock())  # it has come to its end
    return found


def spread_over_training(module: nn.Module, device: torch.device) -> None:
    """Make the first steps of an elastic module stand for a whole training.

    Where sub-models grow as training proceeds, the first steps cost less than the others. Here they sample those of all
    of it: multiples of the golden ratio cover the training evenly, after however many steps the measurement ends. Every
    sub-model is called once before, as its first call takes longer.
    """
    elastic = next((one for one in module.modules() if isinstance(one, ElasticVisionTransformer)), None)
    if elastic is None:
        return
    draw, count, specs = elastic.draw, itertools.count(1), set[Spec]()
    for step in range(MOST):
        draw(np.random.default_rng(step), step / MOST)
        specs |= set(elastic.drawn)
    elastic.train()
    with torch.no_grad():
        for spec in specs:
            elastic.forward_as(spec, torch.zeros(1, *spec.image, device=device))
    elastic.draw = lambda generator, done: draw(generator, next(count) * _GOLDEN_RATIO % 1)  # type: ignore[method-assign]


def step_seconds(marks: list[float], per_epoch: int, score: float) -> float:
    """Mean seconds of a step after the warm-up.

    Args:
        per_epoch: Steps after which the validation split is scored.
        score: Seconds of that.
    """
    spans = [after - before for before, after in itertools.pairwise(marks)]
    own = [span - score * ((number + 1) % per_epoch == 0) for number, span in enumerate(spans)]
    own = own[WARM_UP:] or own
    return max(0.0, sum(own) / len(own)) if own else 0.0


@dataclass(frozen=True)
class DistillationCost:
    """What a distillation will cost.

    Attributes:
        learngene: Its name.
        seconds: Of each worker.
        share: GPUs, or CPUs, of a worker.
        device: Where the steps were measured.
        load: Mean number of processes that wanted a CPU there, over the last minute.
        price_per_hour: Of one GPU, or of one CPU where there is no GPU.
    """

    learngene: str
    seconds: float
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

"""What training asks for and where it comes from: one stream of batches, for one training or for several.

Training is a coroutine: it yields a `Need` and is sent the batches. So the same code trains alone, from a stream of its
own (`feed`), or beside others that see the same views (`siblings`).
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from enum import IntEnum
from itertools import islice
from typing import Any, NamedTuple, Protocol, TypeVar

from torch.utils.data import DataLoader

from ray_learngene.config import OptimizationConfig
from ray_learngene.data.images import Images
from ray_learngene.steps import Batch
from ray_learngene.worker import Worker

T = TypeVar("T")


class Phase(IntEnum):
    """Of what a step is one: of fitting an adapter to its size, which comes first, or of training."""

    FIT = 0
    TRAIN = 1


class Part(IntEnum):
    """After so many steps the validation split comes first, where it is asked for, and then the next step."""

    VALIDATION = 0
    STEP = 1


class Need(NamedTuple):
    """What a training asks for next; needs are ordered as every training asks for them.

    Attributes:
        step: Optimizer steps that were taken before.
        number: Of the batch of the validation split.
    """

    phase: Phase
    step: int
    part: Part
    number: int = 0


# sent for a need: the micro-batches of a step, or None to stop there; a batch of the validation split, or none after it
Supply = Iterable[Batch] | None
Coroutine = Generator[Need, Supply, T]


class Answers(Protocol):
    """The ancestry model's answers beside a worker's batches."""

    def beside(self, loader: DataLoader[Any]) -> Iterable[Batch]: ...


class Stream:
    """The batches of one worker, opened where they are first asked for and read on from there.

    Args:
        config: Which views, in which order, and how many make a step.
        answers: What comes beside the images of a training step.
        whole_evaluation: Every worker scores the whole validation split.
    """

    def __init__(
        self,
        images: Images,
        config: OptimizationConfig,
        worker: Worker,
        answers: Answers | None = None,
        whole_evaluation: bool = False,
    ) -> None:
        self.images, self.config, self.worker, self.answers = images, config, worker, answers
        self.validation = images.validation_batches(
            max(1, int(worker.micro_batch(config))),
            rank=0 if whole_evaluation else worker.rank,
            world_size=1 if whole_evaluation else worker.world_size,
        )
        self._next: Need | None = None  # of the steps
        self._end = 0
        self._steps: Iterator[Batch] = iter(())
        self._validating: Iterator[Batch] = iter(())

    def __call__(self, need: Need) -> Iterable[Batch]:
        """What is needed; the micro-batches of a step are read as they are taken."""
        if need.part is Part.VALIDATION:
            if need.number == 0:
                self._validating = iter(self.validation)
            return list(islice(self._validating, 1))
        if need != self._next or need.step >= self._end:
            self._open(need)
        self._next = need._replace(step=need.step + 1)
        return islice(self._steps, self.config.accumulation)

    def _open(self, need: Need) -> None:
        steps_per_epoch = len(self.images.train) // self.config.batch_size
        epochs = max(self.config.epochs, need.step // steps_per_epoch + 1)  # fitting may take more than training
        self._end = epochs * steps_per_epoch
        loader = self.images.training_batches(
            self.config.model_copy(update={"epochs": epochs}),
            rank=self.worker.rank,
            world_size=self.worker.world_size,
            start_step=need.step,
        )
        taught = self.answers is not None and need.phase is Phase.TRAIN
        self._steps = iter(self.answers.beside(loader) if taught else loader)  # type: ignore[union-attr]


def feed(training: Coroutine[T], stream: Stream, stop: Callable[[int], bool] = lambda step: False) -> T:
    """Run one training from a stream of its own.

    Args:
        stop: Called before every step, by all workers; where it says so, training is told to stop.
    """
    try:
        need = next(training)
        while True:
            stopping = need.part is Part.STEP and stop(need.step)
            need = training.send(None if stopping else stream(need))
    except StopIteration as end:
        return end.value

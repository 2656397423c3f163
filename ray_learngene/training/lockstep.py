"""The training loop: trains one model, or several in lockstep, from their last checkpoints to their last step.

Models in lockstep share every batch: it is read, augmented, copied to the device and passed through the teacher once.
Each model ends with the weights that it would get alone, bit for bit on the CPU.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Generic, NoReturn, Protocol, TypeVar

from ray_learngene.training.batches import Batches
from ray_learngene.training.clock import Clock, shared_by
from ray_learngene.training.step import Batch


class Trains(Protocol):
    """One model in training, such as `Trainer`."""

    clock: Clock
    total_steps: int

    @property
    def step(self) -> int:
        """Number of optimizer steps so far."""
        ...

    @property
    def score_due(self) -> bool:
        """Whether the validation split must be scored before the next step."""
        ...

    def take_step(self, micro_batches: Iterable[Batch]) -> None: ...
    def score(self, batch: Batch, split: int) -> None: ...
    def end_score(self) -> None: ...
    def save_if_due(self) -> None: ...

    def begin_interrupt(self) -> None:
        """Write a checkpoint, because no further step follows."""
        ...

    def interrupt(self) -> NoReturn:
        """Wait until the checkpoint is saved, then raise `Interrupted`."""
        ...

    def finish(self) -> None:
        """Wait until the last checkpoint is saved."""
        ...


T = TypeVar("T", bound=Trains)


def train(
    trainers: Sequence[T],
    batches: Batches,
    *,
    stop: Callable[[int], bool] = lambda step: False,
    finished: Callable[[T], None] = lambda trainer: None,
    failed: Callable[[T, Exception], None] | None = None,
) -> None:
    """Train to the last step; a model that resumes from a later checkpoint joins when the others reach its step.

    Args:
        stop: Called before every step, on all ranks. If it returns true, training ends there with a checkpoint.
        finished: Called with a model as soon as its last step is scored and saved; others may still train.
        failed: Called with a model and the error that ended it; the others continue. None raises the error. An error
            of a batch is an error of every model that needs the batch.

    Raises:
        Interrupted: `stop` returned true, and `failed` is None.
    """
    group = Group(trainers, failed)
    _score(group, batches)
    _finish(group, finished)
    for step in range(min(t.step for t in trainers), max(t.total_steps for t in trainers)):
        due = [t for t in group.running if t.step == step < t.total_steps]
        if due and stop(step):
            group.each(lambda t: t.begin_interrupt())  # all write checkpoints while the first one is uploaded
            group.each(lambda t: t.interrupt())
            return
        shared = group.shared(batches.of_step(step), due)
        micro_batches = list(shared) if len(due) > 1 else shared  # a single model reads them one at a time
        group.each(lambda t: t.take_step(micro_batches), due)  # noqa: B023  (called at once)
        _score(group, batches)
        group.each(lambda t: t.save_if_due(), due)
        _finish(group, finished)


def _finish(group: Group[T], finished: Callable[[T], None]) -> None:
    """End every model that has taken its last step; the others then train without it."""
    for member in [t for t in group.running if t.step >= t.total_steps]:
        group.each(lambda t: t.finish(), [member])
        group.each(finished, [member])
        group.leave(member)


def _score(group: Group[T], batches: Batches) -> None:
    """Score every model that is due."""
    if due := [t for t in group.running if t.score_due]:
        for split, loader in batches.scored():
            for batch in group.shared(loader, due):
                group.each(lambda t: t.score(batch, split), due)  # noqa: B023
        group.each(lambda t: t.end_score(), due)


class HasClock(Protocol):
    clock: Clock


M = TypeVar("M", bound=HasClock)


class Group(Generic[M]):
    """Members that work in lockstep, each on its own clock; an error that ends one does not affect the others.

    Args:
        failed: Called with a member and the error that ended it; None raises the error.

    Attributes:
        running: The members that have not ended.
    """

    def __init__(self, members: Iterable[M], failed: Callable[[M, Exception], None] | None = None) -> None:
        self.running = list(members)
        self.failed = failed

    def each(self, act: Callable[[M], Any], members: Iterable[M] | None = None) -> None:
        """Call `act` on all running members, or on those of `members` that are still running."""
        for member in list(self.running if members is None else members):
            if member not in self.running:
                continue
            try:
                with member.clock.running():
                    act(member)
            except Exception as error:
                self.drop(member, error)

    def shared(self, batches: Iterable[Batch], members: Sequence[M]) -> Iterator[Batch]:
        """Read batches once for several members, onto their device; each clock counts an equal share of the time."""
        reading = iter(batches)
        while alive := [member for member in members if member in self.running]:
            try:
                with shared_by([member.clock for member in alive]):
                    batch = next(reading, None)
                    if batch is not None and len(members) > 1:
                        batch = tuple(part.to(alive[0].clock.device, non_blocking=True) for part in batch)  # type: ignore[assignment]
            except Exception as error:
                for member in alive:
                    self.drop(member, error)
                return
            if batch is None:
                return
            yield batch

    def leave(self, member: M) -> None:
        """Take a member out that has ended, if an error has not done so."""
        if member in self.running:
            self.running.remove(member)

    def drop(self, member: M, error: Exception) -> None:
        """End a member with an error."""
        if self.failed is None:
            raise error
        if member in self.running:
            self.running.remove(member)
            traceback.clear_frames(error.__traceback__)  # the frames hold its model
            self.failed(member, error)

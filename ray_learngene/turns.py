"""Several trainings in one process that see the same views: every batch is read, augmented and copied once for all."""

from __future__ import annotations

import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Generic, TypeVar

import torch

from ray_learngene.stream import Coroutine, Need, Part, Stream, Supply

T = TypeVar("T")
_SPANS = 1000  # kept before they are added up, so that nobody waits for the device


class Clock:
    """Seconds that one training costs: those of its turns, and its share of those that were spent for several.

    On a GPU they are seconds of the device, which works on while the host is ahead.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._seconds = 0.0
        self._spans: deque[tuple[Any, Any, float]] = deque()
        self._since: Any = None

    def __call__(self) -> float:
        seconds = self._settled()
        return seconds if self._since is None else seconds + self._between(self._since, self.mark())

    def mark(self) -> Any:
        """This moment."""
        if self.device.type != "cuda":
            return time.monotonic()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def start(self) -> None:
        self._since = self.mark()

    def stop(self) -> None:
        self.add(self._since, self.mark())
        self._since = None

    def add(self, start: Any, end: Any, share: float = 1.0) -> None:
        """Add a share of the seconds between two marks."""
        self._spans.append((start, end, share))
        if len(self._spans) >= _SPANS:
            self._settled()

    def _settled(self) -> float:
        while self._spans:
            start, end, share = self._spans.popleft()
            self._seconds += share * self._between(start, end)
        return self._seconds

    def _between(self, start: Any, end: Any) -> float:
        if self.device.type != "cuda":
            return end - start
        end.synchronize()
        return start.elapsed_time(end) / 1000


class Sibling(Generic[T]):
    """A training among others, until it has ended by a result or an error."""

    def __init__(self, training: Coroutine[T], clock: Clock) -> None:
        self.training, self.clock = training, clock
        self.need: Need | None = None
        self.result: T | None = None
        self.error: Exception | None = None

    def start(self) -> None:
        """Go on to the first need."""
        self._go(lambda: next(self.training))

    def send(self, supply: Supply) -> None:
        """Go on to the next need."""
        self._go(lambda: self.training.send(supply))

    def throw(self, error: Exception) -> None:
        """Go on with an error in place of what was needed."""
        self._go(lambda: self.training.throw(error))

    def _go(self, on: Callable[[], Need]) -> None:
        self.need = None
        self.clock.start()
        try:
            self.need = on()
        except StopIteration as end:
            self.result = end.value
        except Exception as error:
            traceback.clear_frames(error.__traceback__)  # they hold its model
            self.error = error
        finally:
            self.clock.stop()


def train_together(
    siblings: Iterable[Sibling[T]],
    stream: Stream,
    ended: Callable[[Sibling[T]], None],
    stop: Callable[[int], bool] = lambda step: False,
) -> None:
    """Train all in turns, each a whole step; whoever is furthest behind goes first, with all who need the same batches.

    So those that are ahead, because they were resumed from later checkpoints, join when the others get there. What
    happens to one, or what one raises, leaves the others as they are; an error of the stream is one of all who need it.

    Args:
        ended: Called with every sibling when it has ended.
        stop: Where it says so, all are told to stop at their next step.
    """
    everyone = list(siblings)
    try:
        for sibling in everyone:
            sibling.start()
            if sibling.need is None:
                ended(sibling)
        while needs := [sibling.need for sibling in everyone if sibling.need is not None]:
            need = min(needs)
            turn = [sibling for sibling in everyone if sibling.need == need]
            _take_turn(turn, need, None if need.part is Part.STEP and stop(need.step) else stream)
            for sibling in turn:
                if sibling.need is None:
                    ended(sibling)
    finally:
        for sibling in everyone:
            sibling.training.close()


def _take_turn(turn: list[Sibling[T]], need: Need, stream: Stream | None) -> None:
    clocks = [sibling.clock for sibling in turn]
    supply: Supply = None
    if stream is not None:
        began = clocks[0].mark()
        try:
            supply = [_on_device(batch, stream.worker.device) for batch in stream(need)]
        except Exception as error:
            for sibling in turn:
                sibling.throw(error)
            return
        finished = clocks[0].mark()
        for clock in clocks:
            clock.add(began, finished, 1 / len(turn))
    for sibling in turn:
        sibling.send(supply)


def _on_device(batch: Any, device: torch.device) -> Any:
    return tuple(part.to(device, non_blocking=True) for part in batch)

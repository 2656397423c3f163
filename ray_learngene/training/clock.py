"""The seconds that one training costs when several share a process: by the clock, and of its device."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ray_learngene.training.helper_threads import cpu_seconds

Seconds = NDArray[np.float64]  # by the clock, and of the device

_MOST_SPANS = 1000  # unread spans: so many that reading them seldom waits for the device


class Clock:
    """Sums the time of one training: its own steps and its share of the work done for several trainings.

    Seconds of the device are CPU seconds of this process, all threads together, without loader processes and trackers.
    They stay nearly the same on a busy machine. On a GPU both numbers are device time, because the host runs ahead of
    the device.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._seconds: Seconds = np.zeros(2)
        self._spans: deque[tuple[Any, Any, float]] = deque()
        self._since: Any = None

    def __call__(self) -> float:
        """Return the seconds so far by the clock."""
        return float(self.spent()[0])

    def spent(self) -> Seconds:
        """Return the seconds so far: by the clock, and of the device."""
        seconds = self._settled()
        return seconds if self._since is None else seconds + self._between(self._since, self._mark())

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count the time of this block."""
        self._since = self._mark()
        try:
            yield
        finally:
            self._add(self._since, self._mark())
            self._since = None

    def _mark(self) -> Any:
        if self.device.type != "cuda":
            return np.array([time.monotonic(), cpu_seconds()])
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _add(self, start: Any, end: Any, share: float = 1.0) -> None:
        self._spans.append((start, end, share))
        if len(self._spans) >= _MOST_SPANS:
            self._settled()

    def _settled(self) -> Seconds:
        while self._spans:
            start, end, share = self._spans.popleft()
            self._seconds = self._seconds + share * self._between(start, end)
        return self._seconds

    def _between(self, start: Any, end: Any) -> Seconds:
        if self.device.type != "cuda":
            return np.asarray(end - start)
        end.synchronize()
        return np.full(2, start.elapsed_time(end) / 1000)


@contextmanager
def shared_by(clocks: Sequence[Clock]) -> Iterator[None]:
    """Count an equal share of this block's time on every clock, except on clocks that are already running."""
    waiting = [clock for clock in clocks if clock._since is None]
    start = clocks[0]._mark() if waiting else None
    try:
        yield
    finally:
        end = clocks[0]._mark() if waiting else None
        for clock in waiting:
            clock._add(start, end, 1 / len(clocks))

"""Run many Ray tasks, some at a time, until this process is asked to end."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import TypeVar

import ray

from ray_learngene import sigterm

T = TypeVar("T")


def as_they_end(start: Callable[[T], ray.ObjectRef], waiting: deque[T], most: int) -> Iterator[tuple[T, ray.ObjectRef]]:
    """Start a task for each of `waiting`, and yield them as they end; once this process is asked to end, start no more.

    Args:
        waiting: The caller may add to it, such as a task that must run again.
        most: Tasks at a time.
    """
    running: dict[ray.ObjectRef, T] = {}
    while True:
        while waiting and len(running) < most and not sigterm.requested():
            one = waiting.popleft()
            running[start(one)] = one
        if not running:
            return
        done, _ = ray.wait(list(running), num_returns=1, timeout=1)  # signals are handled between two waits
        for each in done:
            yield running.pop(each), each

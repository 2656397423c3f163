"""Stop workers with a checkpoint: after SIGTERM to one of them or to the driver, or if Ray drains a node."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import ray
import ray.train
import torch
from ray.train.torch import TorchConfig
from ray.util.queue import Queue

from ray_learngene import sigterm
from ray_learngene.cluster.driver import queue_here
from ray_learngene.cluster.ray_internals import draining_nodes

if TYPE_CHECKING:  # Ray Train's controller reads this file and needs no more of it
    from ray_learngene.training.world import World

_SECONDS = 2.0  # between questions; each costs a collective operation and two calls to actors
_MOST_STEPS = 1000


class GracefulBackend(TorchConfig().backend_cls):  # type: ignore[misc]  # the class is private, the property is not
    """Ray Train's torch backend that makes SIGTERM to a worker a stop request."""

    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        super().on_start(worker_group, backend_config)
        worker_group.execute(sigterm.catch)  # in the main thread, unlike the training function


class GracefulTorchConfig(TorchConfig):
    """Selects `GracefulBackend`."""

    @property
    def backend_cls(self) -> type:
        return GracefulBackend


class StopPoll:
    """Check about every two seconds whether to stop. All ranks call it before every step and agree.

    The number of steps between two checks follows the measured pace, and at most doubles: a wrong first measurement
    cannot delay a stop for long.
    """

    def __init__(self, world: World, requests: Queue) -> None:
        self.world, self.requests = world, requests
        self._steps, self._left, self._asked = 0, 1, time.monotonic()

    def __call__(self, step: int) -> bool:
        self._left -= 1
        if self._left:
            return False
        first = self.world.rank == 0
        asked = sigterm.requested() or (first and not self.requests.empty())
        pace = self._steps / max(1e-9, time.monotonic() - self._asked)
        most = min(_MOST_STEPS, 2 * max(1, self._steps))
        steps = max(1, min(most, round(pace * _SECONDS)))  # the first worker's clock decides for all
        answer = torch.tensor([float(asked), float(steps if first else 0)], device=self.world.device)
        self.world.all_reduce(answer)
        self._steps = self._left = int(answer[1])
        self._asked = time.monotonic()
        drained = ray.train.get_preemption_info() is not None
        return bool(answer[0]) or drained


@contextmanager
def stop_requests(asked: threading.Event | None = None) -> Iterator[Queue]:
    """Yield a queue that gets an item when the driver is asked to stop; then `asked` is set."""
    requests = queue_here()
    over = threading.Event()

    def pass_on() -> None:
        while not over.is_set():
            if sigterm.wait(0.2):
                requests.put("SIGTERM")
                if asked is not None:
                    asked.set()
                return

    thread = threading.Thread(target=pass_on, name="stop requests", daemon=True)
    thread.start()
    try:
        yield requests
    finally:
        over.set()
        thread.join()
        requests.shutdown()


@contextmanager
def watching(requests: Queue) -> Iterator[None]:
    """Pass the driver's stop request (`stop_requests`) on to this process, from before the first step on.

    Only a thread calls Ray. If a task's main thread waits for Ray, Ray gives its CPU to another task.
    """
    over, answered = threading.Event(), threading.Event()

    def ask() -> None:
        asked = False
        while not (asked or over.is_set()):
            with suppress(Exception):  # the driver's host may be away for a while
                asked = not requests.empty()
            if asked:
                sigterm.request()
            answered.set()
            over.wait(_SECONDS)

    thread = threading.Thread(target=ask, name="stop requests", daemon=True)
    thread.start()
    answered.wait()
    try:
        yield
    finally:
        over.set()
        thread.join()


class CatchesSigterm:
    """Mixin of Tune trials: SIGTERM or a draining node is a stop request."""

    def setup(self, config: dict[str, Any]) -> None:  # in the main thread, unlike the trial's function
        sigterm.catch()
        threading.Thread(target=_watch_node, name="node watch", daemon=True).start()
        super().setup(config)  # type: ignore[misc]


def _watch_node() -> None:
    node = ray.get_runtime_context().get_node_id()
    while not sigterm.wait(_SECONDS):
        with suppress(Exception):  # the head may be away for a while
            if node in draining_nodes():
                sigterm.request()

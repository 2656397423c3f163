"""Carry progress and messages from Ray's workers to the driver."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from logging.handlers import QueueHandler
from queue import SimpleQueue
from typing import Any

import ray
from ray.util.queue import Queue
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

_ARRIVAL_SECONDS = 10  # for a worker's last message; a driver that is gone for longer will not show it


def queue_here() -> Queue:
    """Create a queue on this host, so that it does not end with another node."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})


@dataclass
class Driver:
    """The driver, as its workers see it. A thread sends to it in order, so that a worker waits for it only at its end.

    Attributes:
        level: Of the messages that the driver shows.
        outbox: What this worker has not sent yet; None outside of `connected`.
    """

    queue: Queue
    level: int
    outbox: SimpleQueue[Any] | None = None

    def report(self, metrics: object) -> None:
        """Show metrics in the driver."""
        assert self.outbox is not None
        self.outbox.put(metrics)

    @contextmanager
    def connected(self) -> Iterator[None]:
        """Send this worker's metrics and messages to the driver; wait at the end until they have arrived there."""
        outbox = self.outbox = SimpleQueue()
        handler, log = QueueHandler(outbox), logging.getLogger("ray_learngene")
        sender = threading.Thread(target=self._send, args=(outbox,), name="to the driver", daemon=True)
        sender.start()
        log.addHandler(handler)
        log.setLevel(self.level)
        try:
            yield
        finally:
            log.removeHandler(handler)
            outbox.put(None)
            sender.join(_ARRIVAL_SECONDS)

    def _send(self, outbox: SimpleQueue[Any]) -> None:
        while (told := outbox.get()) is not None:
            with suppress(Exception):  # the driver's host may be away for a while
                self.queue.put(told)


@contextmanager
def from_workers(show: Callable[[Any], None]) -> Iterator[Driver]:
    """Log the messages of workers in this process, and show their metrics, in order."""
    queue = queue_here()

    def drain() -> None:
        with suppress(ray.exceptions.RayError):  # the queue was lost
            while (told := queue.get()) is not None:
                if not isinstance(told, logging.LogRecord):
                    show(told)
                elif (log := logging.getLogger(told.name)).isEnabledFor(told.levelno):
                    log.handle(told)

    thread = threading.Thread(target=drain, name="progress", daemon=True)
    thread.start()
    try:
        yield Driver(queue, logging.getLogger("ray_learngene").getEffectiveLevel())
    finally:
        with suppress(ray.exceptions.RayError):
            queue.put(None)  # after all that workers sent: they wait until it has arrived
        thread.join()
        queue.shutdown()

"""CPU seconds of this process without those of threads that only follow a training, such as a tracker's."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

_lock = threading.Lock()  # a clock of a thread that has ended must not be read
_clocks: set[int] = set()  # of helpers that run
_ended = 0.0  # CPU seconds of those that have ended


@contextmanager
def not_training() -> Iterator[None]:
    """Leave out this thread's CPU seconds; it enters when it begins. On macOS, without such clocks, they count."""
    global _ended
    if not hasattr(time, "pthread_getcpuclockid"):
        yield
        return
    clock = time.pthread_getcpuclockid(threading.get_ident())
    with _lock:
        _clocks.add(clock)
    try:
        yield
    finally:
        with _lock:
            _clocks.remove(clock)
            _ended += time.thread_time()


def cpu_seconds() -> float:
    """Return the CPU seconds of all other threads of this process together."""
    with _lock:
        return time.process_time() - _ended - sum(map(time.clock_gettime, _clocks))

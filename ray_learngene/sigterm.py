"""SIGTERM: a host is reclaimed, or a job is stopped. Training then ends at its next step, with a checkpoint."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from ray_learngene.errors import Interrupted

STATUS = 143  # 128 + SIGTERM: what a shell shows of a process that SIGTERM ended

_requested = threading.Event()


def requested(step: int = 0) -> bool:
    """Whether this process has been asked to end."""
    return _requested.is_set()


def wait(seconds: float) -> bool:
    """Wait until this process is asked to end, at most so long; whether it was."""
    return _requested.wait(seconds)


def request() -> None:
    """Ask this process to end, as SIGTERM does."""
    _requested.set()


def catch() -> None:
    """Make SIGTERM a request from now on; a second one does what it did before. Only the main thread may call it."""
    before = signal.getsignal(signal.SIGTERM)

    def handle(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, before)
        request()

    signal.signal(signal.SIGTERM, handle)


@contextmanager
def quiet_exit() -> Iterator[None]:
    """Make SIGTERM end this process with the status that a shell shows; in other threads than the main one, nothing.

    Ray's own handlers, which `ray.init` sets, print a C++ trace or end a driver with status 15.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(number: int, frame: FrameType | None) -> None:
        raise SystemExit(STATUS)

    before = signal.signal(signal.SIGTERM, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def graceful() -> Iterator[None]:
    """Make SIGTERM a request in a stretch of work.

    Where the work ends by itself before it has seen the request, SIGTERM does afterwards what it would have done. In
    other threads than the main one nothing changes: there somebody else has called `catch`, or nobody.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    catch()
    try:
        yield
    except Interrupted:
        _requested.clear()
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
        if _requested.is_set():
            _requested.clear()
            signal.raise_signal(signal.SIGTERM)

"""SIGTERM (a host is reclaimed, a job is stopped) and Ctrl-C: training ends at its next step, with a checkpoint."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

STATUS = 143  # 128 + SIGTERM: what a shell shows of a process that SIGTERM ended
CTRL_C_STATUS = 130  # 128 + SIGINT
_AGAIN = "learngene: writing checkpoints; Ctrl-C again ends at once, and goes on from the checkpoints before\n"

_requested = threading.Event()
_last = signal.SIGTERM  # the signal that made the last request
_when = 0.0  # it came
_nested = False  # inside `graceful`


def requested(step: int = 0) -> bool:
    """Check whether this process was asked to end."""
    return _requested.is_set()


def by_ctrl_c() -> bool:
    """Check whether the last request was Ctrl-C."""
    return _last == signal.SIGINT


def since() -> float:
    """Return the seconds since the last request."""
    return time.monotonic() - _when


def wait(seconds: float) -> bool:
    """Wait until this process is asked to end, at most so long; return whether it was."""
    return _requested.wait(seconds)


def request() -> None:
    """Ask this process to end, as SIGTERM does."""
    global _when
    _when = time.monotonic()
    _requested.set()


def catch(*signals: signal.Signals) -> None:
    """Make signals (SIGTERM) requests from now on; a second one does what it did before. For the main thread only."""
    before = {number: signal.getsignal(number) for number in signals or (signal.SIGTERM,)}
    process = os.getpid()

    def handle(number: int, frame: FrameType | None) -> None:
        global _last
        _last = signal.Signals(number)
        for each, handler in before.items():
            signal.signal(each, handler)
        if number == signal.SIGINT and os.getpid() == process:  # a terminal's Ctrl-C reaches loader processes too
            os.write(2, _AGAIN.encode())
        request()

    for number in before:
        signal.signal(number, handle)


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
    """Make SIGTERM and Ctrl-C requests to end while the context is open.

    If the work ends by itself before it has seen the request, the signal does afterwards what it would have done. In
    other threads than the main one nothing changes, nor inside another such stretch.
    """
    global _nested
    if _nested or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    catch(*before)
    _nested = True
    try:
        yield
    except BaseException:  # an error tells more than the signal
        _requested.clear()
        raise
    finally:
        _nested = False
        for number, handler in before.items():
            signal.signal(number, handler)
        if _requested.is_set():
            _requested.clear()
            signal.raise_signal(_last)

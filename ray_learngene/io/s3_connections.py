"""The event loops on which requests to S3 run, each with connections of its own.

A thread that is alone runs a loop of its own for each request. Threads that ask at once share the loop of fsspec, which
has a thread of its own. So a single request does not wait for two changes of threads.
"""

from __future__ import annotations

import asyncio
import os
import threading
import weakref
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, TypeVar

from fsspec.asyn import get_loop
from s3fs import S3FileSystem

T = TypeVar("T")


class Connections:
    """Connections to an S3 server with one set of credentials. A forked process makes its own."""

    def __init__(self, open_s3: Callable[[], S3FileSystem]) -> None:
        self._open = open_s3
        self._process, self._alone = os.getpid(), threading.Lock()  # held by the thread that runs the own loop
        self._opening = threading.Lock()
        self._own: tuple[S3FileSystem, asyncio.AbstractEventLoop] | None = None
        self._shared: S3FileSystem | None = None

    def _check_process(self) -> None:
        if os.getpid() != self._process:
            raise RuntimeError("a forked process makes its own client")

    @property
    def shared(self) -> S3FileSystem:
        """The client on the loop of fsspec."""
        self._check_process()
        with self._opening:
            if self._shared is None:
                s3 = self._open()
                client = asyncio.run_coroutine_threadsafe(s3.set_session(), get_loop()).result()
                weakref.finalize(s3, _close_shared, get_loop(), client, self._process)
                self._shared = s3
            return self._shared

    def run(self, request: Callable[[S3FileSystem], Coroutine[Any, Any, T]]) -> T:
        """Run a request: on the own loop if no other thread does, and this one runs no other loop."""
        self._check_process()
        if not _runs_a_loop() and self._alone.acquire(blocking=False):
            try:
                if self._own is None:
                    self._own = self._open_own()
                s3, loop = self._own
                return _run(loop, request(s3))
            finally:
                self._alone.release()
        return self.start(request(self.shared)).result()

    def _open_own(self) -> tuple[S3FileSystem, asyncio.AbstractEventLoop]:
        s3, loop = self._open(), asyncio.new_event_loop()
        try:
            client = _run(loop, s3.set_session())
        except BaseException:
            loop.close()
            raise
        weakref.finalize(s3, _close, loop, client, self._process)
        return s3, loop

    def start(self, request: Coroutine[Any, Any, T]) -> Future[T]:
        """Run a coroutine on the loop of fsspec."""
        return asyncio.run_coroutine_threadsafe(request, get_loop())


def _runs_a_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _run(loop: asyncio.AbstractEventLoop, request: Coroutine[Any, Any, T]) -> T:
    """Run a request to its end; an exception of this thread, such as Ctrl-C, ends it."""
    task = loop.create_task(request)
    try:
        return loop.run_until_complete(task)
    finally:
        if not task.done():
            task.cancel()
            with suppress(asyncio.CancelledError):
                loop.run_until_complete(task)


def _close(loop: asyncio.AbstractEventLoop, client: Any, process: int) -> None:
    """Close the connections of a loop that no longer runs."""
    if os.getpid() != process or loop.is_running():
        return
    if _runs_a_loop():  # the client was dropped while this thread ran the loop of another one
        closing = threading.Thread(target=_close, args=(loop, client, process))
        closing.start()
        closing.join()
        return
    loop.run_until_complete(client.__aexit__(None, None, None))
    loop.close()


def _close_shared(loop: asyncio.AbstractEventLoop, client: Any, process: int) -> None:
    """Close the connections of the loop of fsspec; at the end of the process, wait a moment for that."""
    if os.getpid() == process and loop.is_running():
        closing = asyncio.run_coroutine_threadsafe(client.__aexit__(None, None, None), loop)
        if not _runs_a_loop():
            with suppress(TimeoutError):
                closing.result(0.5)

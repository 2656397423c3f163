"""Large files to and from S3: several requests at once, and each repeated by itself where the server fails.

A single connection reaches a fraction of what a server and a network give. Received bytes come in order all the same:
the next ranges are asked for early, and what arrives of them waits in the system's socket buffers. So a file is hashed
and written while it is being received, and what is on the disk of an interrupted download is its beginning.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from ray_learngene.errors import UserError
from ray_learngene.io.errors import clear_errors
from ray_learngene.io.retry import Retry
from ray_learngene.io.s3 import Answer, S3Storage

RANGE_BYTES = 32 * 2**20
PIECE_BYTES = 2**20
RANGES = 4  # asked for at once
PART_BYTES = 8 * 2**20  # the least that S3 takes is 5 MiB
PARTS = 4  # sent at once
MOST_PARTS = 10_000  # that S3 takes for an object

T = TypeVar("T")


class Transfer:
    """One object of a bucket; `uri` is what errors name."""

    def __init__(self, storage: S3Storage, path: str, uri: str, patience: Retry) -> None:
        self.storage, self.path, self.uri, self.patience = storage, path, uri, patience

    def _patiently(self, request: Callable[[], T]) -> T:
        def attempt() -> T:
            with clear_errors(self.uri):
                return request()

        return self.patience.wait_for(attempt)

    def receive(self, offset: int) -> Iterator[bytes]:
        """The content from a byte offset on, in pieces; nothing where it ends before the offset."""
        first = _Range(self.storage, self.path, offset)
        total = self._patiently(first.open)
        starts = iter(range(first.end, total, RANGE_BYTES))
        coming: deque[Future[_Range]] = deque()
        with ThreadPoolExecutor(RANGES - 1) as pool:

            def ask() -> None:
                if (start := next(starts, None)) is not None:
                    coming.append(pool.submit(self._opened, _Range(self.storage, self.path, start)))

            try:
                for _ in range(RANGES - 1):
                    ask()
                current = first
                while True:
                    while piece := self._patiently(current.piece):
                        yield piece
                    if not coming:
                        return
                    current = coming.popleft().result()
                    ask()
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def _opened(self, span: _Range) -> _Range:
        self._patiently(span.open)
        return span

    def send(self, source: Path) -> None:
        """Upload a file in parts, replacing what was there as a whole."""
        size = source.stat().st_size
        part_bytes = max(PART_BYTES, math.ceil(size / MOST_PARTS))
        upload = self._patiently(lambda: self.storage.begin_upload(self.path))

        def send_part(number: int) -> dict[str, object]:
            with clear_errors(str(source)), source.open("rb") as file:
                file.seek((number - 1) * part_bytes)
                data = file.read(part_bytes)
            return self._patiently(lambda: self.storage.upload_part(self.path, upload, number, data))

        pool = ThreadPoolExecutor(PARTS)
        try:
            parts = list(pool.map(send_part, range(1, 1 + math.ceil(size / part_bytes))))
            self._patiently(lambda: self.storage.finish_upload(self.path, upload, parts))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            with suppress(UserError), clear_errors(self.uri):
                self.storage.give_up_upload(self.path, upload)
            raise
        finally:
            pool.shutdown()


class _Range:
    """A part of an object. After an error it is asked for again from where it broke off."""

    def __init__(self, storage: S3Storage, path: str, start: int) -> None:
        self.storage, self.path, self.position, self.end = storage, path, start, start + RANGE_BYTES
        self.answer: Answer | None = None

    def open(self) -> int:
        """Let the server begin to send; the bytes of the whole object."""
        self.answer = self.storage.open(self.path, self.position, self.end)
        total = self.answer.total if self.answer else 0
        self.end = max(self.position, min(self.end, total))
        return total

    def piece(self) -> bytes:
        """The next bytes; none at the end of the range."""
        if self.position == self.end:
            return b""
        if self.answer is None:
            self.open()
        assert self.answer is not None
        try:
            piece: bytes = self.answer.body.read(min(PIECE_BYTES, self.end - self.position))
        except BaseException:
            self.answer = None
            raise
        self.position += len(piece)
        return piece

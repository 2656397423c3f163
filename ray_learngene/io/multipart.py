"""Transfer large files to and from S3 in parallel requests; each is retried by itself.

One connection uses a fraction of the bandwidth. Bytes arrive in order all the same: the next ranges are requested
early, and each waits with its first piece. So a file is hashed and written while it arrives, and an interrupted
download leaves the beginning of the file.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray_learngene.errors import UserError
from ray_learngene.io.errors import clear_errors, storage_errors
from ray_learngene.io.s3 import S3Storage

if TYPE_CHECKING:
    from ray_learngene.io.s3_bytes import Stream

RANGE_BYTES = 32 * 2**20
PIECE_BYTES = 2**20
RANGES = 4  # asked for at once
PART_BYTES = 8 * 2**20  # the least that S3 takes is 5 MiB
PARTS = 4  # sent at once
MOST_PARTS = 10_000  # that S3 takes for an object


class Transfer:
    """One object of a bucket; `call` makes a request, and retries it for a while."""

    def __init__(self, storage: S3Storage, path: str, call: Callable[[Callable[[], Any]], Any]) -> None:
        self.storage, self.path, self.call = storage, path, call

    def receive(self, offset: int) -> Iterator[bytes]:
        """Yield the content from a byte offset on, in pieces; nothing if it ends before the offset."""
        ranges = deque([_Range(self.storage, self.path, offset)])
        piece = self.call(ranges[0].piece)  # with it comes the size of the object
        later = iter(range(offset + RANGE_BYTES, ranges[0].total, RANGE_BYTES))
        try:
            while ranges:
                for start in islice(later, RANGES - len(ranges)):
                    ranges.append(_Range(self.storage, self.path, start))
                    ranges[-1].ask()
                while piece:
                    yield piece
                    piece = self.call(ranges[0].piece)
                ranges.popleft()
                piece = self.call(ranges[0].piece) if ranges else b""
        finally:
            for each in ranges:
                each.close()

    def send(self, source: Path, sent: Callable[[int], object] = lambda size: None) -> None:
        """Upload a file in parts, replacing what was there as a whole."""
        size = source.stat().st_size
        part_bytes = max(PART_BYTES, math.ceil(size / MOST_PARTS))
        upload = self.call(lambda: self.storage.begin_upload(self.path))

        def send_part(number: int) -> dict[str, object]:
            with clear_errors(str(source)), source.open("rb") as file:
                file.seek((number - 1) * part_bytes)
                data = file.read(part_bytes)
            part = self.call(lambda: self.storage.upload_part(self.path, upload, number, data))
            sent(len(data))
            return part

        pool = ThreadPoolExecutor(PARTS)
        try:
            parts = list(pool.map(send_part, range(1, 1 + math.ceil(size / part_bytes))))
            self.call(lambda: self.storage.finish_upload(self.path, upload, parts))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            with suppress(UserError, *storage_errors()):
                self.storage.give_up_upload(self.path, upload)
            raise
        finally:
            pool.shutdown()


class _Range:
    """A range of an object. After an error the rest of it is requested again."""

    def __init__(self, storage: S3Storage, path: str, start: int) -> None:
        self.storage, self.path, self.position, self.end = storage, path, start, start + RANGE_BYTES
        self.total = 0
        self.stream: Stream | None = None

    def ask(self) -> Stream:
        """Let the server begin to send what is missing."""
        if self.stream is None:
            self.stream = self.storage.stream(self.path, self.position, self.end, PIECE_BYTES)
        return self.stream

    def piece(self) -> bytes:
        """Return the next bytes; none at the end of the range."""
        stream = self.ask()
        try:
            piece = stream.read()
        except BaseException:
            self.close()
            raise
        self.total = stream.total
        self.position += len(piece)
        return piece

    def close(self) -> None:
        if self.stream is not None:
            self.stream.close()
            self.stream = None

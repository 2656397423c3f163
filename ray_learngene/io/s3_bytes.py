"""The bytes of large bodies on their way to S3 and back: taken and received piece by piece, counted, never waited for
without limit.
"""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from contextlib import AbstractContextManager
from typing import Any

from s3fs import S3FileSystem

from ray_learngene.io import s3_settings
from ray_learngene.io.errors import s3_code
from ray_learngene.io.s3_connections import Connections

BLOCK_BYTES = 2**18
LEAST = 2**16  # bytes that a server must send in the time that a request may take
PAST_THE_END = {"INVALIDRANGE", "416"}


def deadline() -> float:
    """Return the seconds without progress after which a server does not answer."""
    return s3_settings.CONNECT_SECONDS + s3_settings.REQUEST_SECONDS


class Body:
    """Bytes that aiohttp takes piece by piece, without a copy.

    Once it has taken one, it does not repeat the request unseen, as it does with bytes and files.

    Attributes:
        taken: How many bytes aiohttp has taken.
    """

    def __init__(self, data: bytes) -> None:
        self.taken = 0
        self._data = memoryview(data)
        file = io.BytesIO(data)
        self.read, self.seek, self.tell = file.read, file.seek, file.tell  # for botocore

    async def __aiter__(self) -> AsyncIterator[memoryview]:
        while self.taken < len(self._data):
            piece = self._data[self.taken : self.taken + BLOCK_BYTES]
            self.taken += len(piece)
            yield piece


class Answer:
    """The bytes `[start, end)` of an object, received by coroutines of one event loop.

    Args:
        piece_bytes: A piece has at most so many.
        least: And at least so many, but for the last one.

    Attributes:
        total: Bytes of the whole object, known once something was read; 0 where it ends before `start`.
    """

    def __init__(self, s3: S3FileSystem, start: int, end: int, piece_bytes: int, least: int) -> None:
        self.total = 0
        self._s3, self._position, self._end = s3, start, end
        self._piece_bytes, self._least = piece_bytes, least
        self._body: Any = None

    @property
    def left(self) -> int:
        """Bytes that have not been received."""
        return self._end - self._position

    async def open(self, **where: str) -> bytes:
        """Ask for the bytes, and return the first of them."""
        try:
            async with asyncio.timeout(deadline()):
                answer = await self._s3._call_s3("get_object", **where, Range=f"bytes={self._position}-{self._end - 1}")
        except OSError as error:
            if s3_code(error) not in PAST_THE_END:
                raise
            self._end = self._position
            return b""
        self._body, given = answer["Body"], answer.get("ContentRange", "")
        if self._position and not given.startswith(f"bytes {self._position}-"):
            self._body.close()
            raise OSError("the server sends other bytes of an object than those that were asked for")
        self.total = int(given.rpartition("/")[2] or answer["ContentLength"])
        self._end = max(self._position, min(self._end, self.total))
        return await self.receive()

    async def receive(self) -> bytes:
        """The next bytes."""
        blocks: list[bytes] = []
        arrived, most = 0, min(self._piece_bytes, self.left)
        try:
            async with asyncio.timeout(deadline()):
                while arrived < min(most, self._least):
                    block = await self._body.read(most - arrived)
                    if not block:
                        raise ConnectionError("the server sent less than it announced")
                    blocks.append(block)
                    arrived += len(block)
        except Exception as error:
            if not blocks or (isinstance(error, TimeoutError) and arrived < LEAST):
                raise
        self._position += arrived
        if not self.left:
            self._body.close()
        return blocks[0] if len(blocks) == 1 else b"".join(blocks)

    def close(self) -> None:
        """Stop receiving."""
        if self._body is not None:
            self._body.close()


class Stream:
    """The bytes `[start, end)` of an object, as they arrive; the request is made at once. One thread reads it.

    The next piece is received while the last one is used. An error is raised after what arrived before it.

    Args:
        errors: The context in which errors become those of the client.
        piece_bytes: A piece has at most so many.
    """

    def __init__(
        self,
        connections: Connections,
        errors: Callable[[], AbstractContextManager[None]],
        start: int,
        end: int,
        piece_bytes: int,
        **where: str,
    ) -> None:
        self._connections, self._errors = connections, errors
        self._answer = Answer(connections.shared, start, end, piece_bytes, LEAST)
        self._next: Future[bytes] | None = connections.start(self._answer.open(**where))

    @property
    def total(self) -> int:
        return self._answer.total

    def read(self) -> bytes:
        """The next bytes; none at the end."""
        if self._next is None:
            return b""
        with self._errors():
            piece = self._next.result()
        self._next = self._connections.start(self._answer.receive()) if self._answer.left else None
        return piece

    def close(self) -> None:
        """Stop receiving."""
        if self._next is not None:
            self._next.cancel()
            self._connections.start(self._close())

    async def _close(self) -> None:
        self._answer.close()

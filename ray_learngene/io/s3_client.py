"""s3fs as a store uses it: every request is made once, ends in bounded time and raises botocore's errors.

Three habits of s3fs are changed. It retries in silence: here `Retry` does, and says so. It turns errors into Python's:
here they are botocore's, with the server's code. And aiohttp below it waits without limit for a server that does not
take a body: here a server that makes no progress for `REQUEST_SECONDS` does not answer.
"""

from __future__ import annotations

import asyncio
import base64
import threading
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import aiohttp
from aiobotocore.session import AioSession
from botocore.exceptions import NoCredentialsError
from s3fs import S3FileSystem

from ray_learngene.io.errors import CredentialsRenewed, client_error, s3_code
from ray_learngene.io.s3_bytes import Answer, Body, Stream, deadline
from ray_learngene.io.s3_connections import Connections
from ray_learngene.io.s3_login import log_in
from ray_learngene.io.s3_open import SMALL_BYTES, open_s3

EXPIRED = {"EXPIREDTOKEN", "TOKENREFRESHREQUIRED", "INVALIDTOKENID"}  # the last is MinIO's
REFUSED = {"ACCESSDENIED", "FORBIDDEN", "403"}


class S3Client:
    """Requests to an S3 server. Threads share a client; a forked process makes its own."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        """Find the credentials, by botocore's chain.

        Args:
            options: Arguments of `S3FileSystem`, on top of the standard variables and profiles.
        """
        self._options = options
        session, self._credentials = log_in(options)
        self.anonymous = bool(options.get("anon")) or self._credentials is None
        self._renewing = threading.Lock()
        self._connections = self._connect(session)

    def _connect(self, session: AioSession) -> Connections:
        return Connections(partial(open_s3, self._options, session, self.anonymous))

    def _renewed(self, used: Connections) -> bool:
        """Return whether there are other credentials than those in use, or another thread has found some meanwhile."""
        with self._renewing:
            if self._connections is used:
                session, found = log_in(self._options)
                if found in (None, self._credentials):
                    return False
                self._credentials, self._connections = found, self._connect(session)
            return True

    @contextmanager
    def _errors(self, used: Connections) -> Iterator[None]:
        """Raise botocore's error where s3fs raises a translation of it, and Python's where aiohttp raises its own."""
        try:
            yield
        except aiohttp.ClientError as error:
            raise ConnectionError(str(error)) from error
        except OSError as error:
            if (answer := client_error(error)) is None:
                raise
            code = s3_code(answer)
            if code in EXPIRED and self._renewed(used):
                raise CredentialsRenewed from None
            if code in REFUSED and self.anonymous:
                raise NoCredentialsError() from None
            raise answer from None

    def call(self, method: str, seconds: float = 0.0, **kwargs: Any) -> dict[str, Any]:
        """Make a request whose body, if it has one, is small.

        Args:
            seconds: That it may take on top of the usual.
        """

        async def request(s3: S3FileSystem) -> dict[str, Any]:
            async with asyncio.timeout(deadline() + seconds):
                answer: dict[str, Any] = await s3._call_s3(method, **kwargs)
                return answer

        with self._errors(used := self._connections):
            return used.run(request)

    def send(self, method: str, data: bytes, **kwargs: Any) -> dict[str, Any]:
        """Make a request with a body. It may take as long as the server keeps taking bytes."""
        if len(data) <= SMALL_BYTES:
            return self.call(method, Body=data, **kwargs)
        with self._errors(used := self._connections):
            return used.run(lambda s3: _send(s3, method, data, **kwargs))

    def read(self, most: int, **where: str) -> bytes:
        """The first `most` bytes of an object."""

        async def request(s3: S3FileSystem) -> bytes:
            answer = Answer(s3, 0, most, most, most)
            try:
                pieces = [await answer.open(**where)]
                while answer.left:
                    pieces.append(await answer.receive())
            finally:
                answer.close()
            return b"".join(pieces)

        with self._errors(used := self._connections):
            return used.run(request)

    def stream(self, start: int, end: int, piece_bytes: int, **where: str) -> Stream:
        """Ask for the bytes `[start, end)` of an object; see `Stream`."""
        used = self._connections
        return Stream(used, partial(self._errors, used), start, end, piece_bytes, **where)


async def _send(s3: S3FileSystem, method: str, data: bytes, **kwargs: Any) -> dict[str, Any]:
    client, body = await s3.set_session(), Body(data)
    if client.meta.config.request_checksum_calculation == "when_supported":
        kwargs["ChecksumCRC32"] = base64.b64encode(zlib.crc32(data).to_bytes(4)).decode()
    request = asyncio.ensure_future(s3._call_s3(method, Body=body, **kwargs))
    taken = -1
    try:
        while not request.done() and body.taken != taken:
            taken = body.taken
            await asyncio.wait({request}, timeout=deadline())
        if not request.done():
            raise TimeoutError("the server does not take the request")
        answer: dict[str, Any] = request.result()
        return answer
    finally:
        if request.cancel():
            await asyncio.wait({request}, timeout=deadline())

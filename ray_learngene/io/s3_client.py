"""s3fs as a store uses it: every request is made once, ends in bounded time and raises botocore's errors.

s3fs opens the connections, signs, and runs requests on an event loop. A thread that is alone runs a loop of its own for
each request. Threads that ask at once share the loop of s3fs, which has a thread of its own. So a single request does
not wait for two changes of threads.

Three habits of s3fs are changed. It retries in silence: here `Retry` does, and says so. It turns errors into Python's:
here they are botocore's, with the server's code. And aiohttp below it waits without limit for a server that does not
take a body: here a server that makes no progress for `REQUEST_SECONDS` does not answer.
"""

from __future__ import annotations

import asyncio
import base64
import io
import os
import threading
import weakref
import zlib
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from datetime import datetime
from typing import Any, TypeVar

import aiohttp
from aiobotocore.session import AioSession
from botocore.exceptions import NoCredentialsError
from botocore.utils import determine_content_length, parse_timestamp
from fsspec.asyn import get_loop, sync
from s3fs import S3FileSystem

from ray_learngene import __version__
from ray_learngene.io import s3_settings
from ray_learngene.io.errors import client_error, s3_code

CONNECTIONS = 32  # kept open for the next requests
BLOCK_BYTES = 2**18
LEAST = 2**16  # bytes that a server must send in the time that a request may take
_DECIDED_HERE = {
    *(
        "anon",
        "endpoint_url",
        "profile",
        "client_kwargs",
        "config_kwargs",
        "session",
        "retries",
        "asynchronous",
        "loop",
    ),
    *("use_listings_cache", "skip_instance_cache", "version_aware"),
}
EXPIRED = {"EXPIREDTOKEN", "TOKENREFRESHREQUIRED"}
REFUSED = {"ACCESSDENIED", "FORBIDDEN", "403"}
PAST_THE_END = {"INVALIDRANGE", "416"}

T = TypeVar("T")


class S3Client:
    """Requests to an S3 server. Threads share a client; a forked process makes its own."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        """Find the credentials, by botocore's chain.

        Args:
            options: Arguments of `S3FileSystem`, on top of the standard variables and profiles.
        """
        self._options = options
        self._session, self._credentials = self._log_in()
        self.anonymous = bool(options.get("anon")) or self._credentials is None
        self._process, self._alone = os.getpid(), threading.Lock()  # held by the thread that runs the own loop
        self._opening = threading.Lock()
        self._own: tuple[S3FileSystem, asyncio.AbstractEventLoop] | None = None
        self._shared: S3FileSystem | None = None

    def _log_in(self) -> tuple[AioSession, Any]:
        session = AioSession(profile=self._options.get("profile"))
        # botocore's own takes most of the time of a long list
        session.get_component("response_parser_factory").set_parser_defaults(timestamp_parser=_timestamp)
        session.get_component("event_emitter").register_last("before-call.s3", _send_with_headers)
        found = None if self._options.get("anon") else sync(get_loop(), session.get_credentials)
        return session, found and sync(get_loop(), found.get_frozen_credentials)

    def _open(self) -> S3FileSystem:
        """A client whose requests run on the loop that awaits them first."""
        options, settings = self._options, s3_settings.s3_settings(self._options)
        client, config = options.get("client_kwargs") or {}, options.get("config_kwargs") or {}
        s3 = S3FileSystem(
            **{name: value for name, value in options.items() if name not in _DECIDED_HERE},
            anon=self.anonymous,
            endpoint_url=settings["endpoint"],
            client_kwargs={
                **{name: value for name, value in client.items() if name != "endpoint_url"},
                "region_name": settings["region"],
            },
            config_kwargs={
                "max_pool_connections": CONNECTIONS,
                "user_agent": f"ray-learngene/{__version__} s3fs",  # else botocore puts one together for each request
                **config,
                "connect_timeout": s3_settings.CONNECT_SECONDS,
                "read_timeout": s3_settings.REQUEST_SECONDS,
                "retries": {"total_max_attempts": 1},
                # Over https this is the default. Over http a SHA-256 of every body would be one more, next to the
                # manifest's of the same bytes; the server sees damage on the way by a CRC.
                "s3": {"payload_signing_enabled": False, **(config.get("s3") or {})},
            },
            session=self._session,
            asynchronous=True,  # else s3fs closes it itself, on whatever loop runs when it is dropped
            use_listings_cache=False,
            skip_instance_cache=True,
        )
        s3.retries = 1
        return s3

    def _renewed(self) -> bool:
        """Whether variables or profile have other credentials than those in use; they are used from now on."""
        session, found = self._log_in()
        if found in (None, self._credentials):
            return False
        self._session, self._credentials = session, found
        self._own = self._shared = None
        return True

    @property
    def _s3(self) -> S3FileSystem:
        """The client on the loop of s3fs."""
        if os.getpid() != self._process:
            raise RuntimeError("a forked process makes its own client")
        with self._opening:
            if self._shared is None:
                s3 = self._open()
                client = asyncio.run_coroutine_threadsafe(s3.set_session(), get_loop()).result()
                weakref.finalize(s3, _close_shared, get_loop(), client, self._process)
                self._shared = s3
            return self._shared

    def _at_once(self, request: Callable[[S3FileSystem], Coroutine[Any, Any, T]]) -> T:
        """Run a request: on the own loop if no other thread does, and this one runs no other loop."""
        if os.getpid() != self._process:
            raise RuntimeError("a forked process makes its own client")
        if not _runs_a_loop() and self._alone.acquire(blocking=False):
            try:
                if self._own is None:
                    loop, s3 = asyncio.new_event_loop(), self._open()
                    client = _run(loop, s3.set_session())
                    weakref.finalize(s3, _close, loop, client, self._process)
                    self._own = s3, loop
                s3, loop = self._own
                return _run(loop, request(s3))
            finally:
                self._alone.release()
        return self.start(request(self._s3)).result()

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Raise botocore's error where s3fs raises a translation of it, and Python's where aiohttp raises its own."""
        try:
            yield
        except aiohttp.ClientError as error:
            raise ConnectionError(str(error)) from error
        except OSError as error:
            if (answer := client_error(error)) is None:
                raise
            code = s3_code(answer)
            if code in EXPIRED and self._renewed():
                raise ConnectionError("the credentials have been renewed: make the request again") from None
            if code in REFUSED and self.anonymous:
                raise NoCredentialsError() from None
            raise answer from None

    def call(self, method: str, seconds: float = 0.0, **kwargs: Any) -> dict[str, Any]:
        """Make a request whose body, if it has one, is small.

        Args:
            seconds: That it may take on top of the usual.
        """

        async def request(s3: S3FileSystem) -> dict[str, Any]:
            async with asyncio.timeout(_deadline() + seconds):
                answer: dict[str, Any] = await s3._call_s3(method, **kwargs)
                return answer

        with self.errors():
            return self._at_once(request)

    def send(self, method: str, data: bytes, **kwargs: Any) -> dict[str, Any]:
        """Make a request with a body. It may take as long as the server keeps taking bytes."""
        if len(data) <= BLOCK_BYTES:
            return self.call(method, Body=data, **kwargs)
        with self.errors():
            return self._at_once(lambda s3: self._send(s3, method, data, **kwargs))

    async def _send(self, s3: S3FileSystem, method: str, data: bytes, **kwargs: Any) -> dict[str, Any]:
        client, body = await s3.set_session(), Body(data)
        if client.meta.config.request_checksum_calculation == "when_supported":
            kwargs["ChecksumCRC32"] = base64.b64encode(zlib.crc32(data).to_bytes(4)).decode()
        request = asyncio.ensure_future(s3._call_s3(method, Body=body, **kwargs))
        taken = -1
        while not request.done() and body.taken != taken:
            taken = body.taken
            await asyncio.wait({request}, timeout=_deadline())
        if not request.done():
            request.cancel()
            raise TimeoutError("the server does not take the request")
        answer: dict[str, Any] = request.result()
        return answer

    def stream(self, start: int, end: int, piece_bytes: int, least: int = LEAST, **where: str) -> Stream:
        """Ask for the bytes `[start, end)` of an object; see `Stream`."""
        return Stream(self, start, end, piece_bytes, least, **where)

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

        with self.errors():
            return self._at_once(request)

    def answer(self, start: int, end: int, piece_bytes: int, least: int) -> Answer:
        """What will receive the bytes `[start, end)` of an object on the thread of s3fs."""
        return Answer(self._s3, start, end, piece_bytes, least)

    def start(self, method: Coroutine[Any, Any, T]) -> Future[T]:
        """Run a coroutine on the thread of s3fs."""
        return asyncio.run_coroutine_threadsafe(method, get_loop())


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
    """Close the connections of the loop of s3fs; at the end of the process, wait a moment for that."""
    if os.getpid() == process and loop.is_running():
        closing = asyncio.run_coroutine_threadsafe(client.__aexit__(None, None, None), loop)
        if not _runs_a_loop():
            with suppress(TimeoutError):
                closing.result(0.5)


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


class Stream:
    """The bytes `[start, end)` of an object, as they arrive; the request is made at once. One thread reads it.

    The next piece is received while the last one is used. An error is raised after what arrived before it.

    Args:
        piece_bytes: A piece has at most so many.
        least: And at least so many, but for the last one.

    """

    def __init__(self, client: S3Client, start: int, end: int, piece_bytes: int, least: int, **where: str) -> None:
        self._client, self._answer = client, client.answer(start, end, piece_bytes, least)
        self._next: Future[bytes] | None = client.start(self._answer.open(**where))

    @property
    def total(self) -> int:
        return self._answer.total

    def read(self) -> bytes:
        """The next bytes; none at the end."""
        if self._next is None:
            return b""
        with self._client.errors():
            piece = self._next.result()
        self._next = self._client.start(self._answer.receive()) if self._answer.left else None
        return piece

    def close(self) -> None:
        """Stop receiving."""
        if self._next is not None:
            self._next.cancel()
            self._client.start(self._close())

    async def _close(self) -> None:
        self._answer.close()


class Answer:
    """The bytes `[start, end)` of an object, received by coroutines of one event loop; arguments as of `Stream`.

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
            async with asyncio.timeout(_deadline()):
                answer = await self._s3._call_s3("get_object", **where, Range=f"bytes={self._position}-{self._end - 1}")
        except OSError as error:
            if s3_code(error) not in PAST_THE_END:
                raise
            self._end = self._position
            return b""
        self._body = answer["Body"]
        self.total = int(answer.get("ContentRange", "").rpartition("/")[2] or answer["ContentLength"])
        self._end = max(self._position, min(self._end, self.total))
        return await self.receive()

    async def receive(self) -> bytes:
        """The next bytes."""
        blocks: list[bytes] = []
        arrived, most = 0, min(self._piece_bytes, self.left)
        try:
            async with asyncio.timeout(_deadline()):
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


def _send_with_headers(params: dict[str, Any], **others: Any) -> None:
    """Send a small body along with its headers; botocore asks first whether the server takes it."""
    size = determine_content_length(params["body"]) if params.get("body") else 0
    if size is not None and size <= BLOCK_BYTES:
        params["headers"].pop("Expect", None)


def _timestamp(text: str) -> datetime:
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        found: datetime = parse_timestamp(text)  # a header's
        return found


def _deadline() -> float:
    return s3_settings.CONNECT_SECONDS + s3_settings.REQUEST_SECONDS

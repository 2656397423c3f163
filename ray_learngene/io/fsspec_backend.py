"""Objects at a URI of any other scheme, by fsspec's public methods.

A client's own habits are kept away from a store: no cached lists, no names with patterns (`rm`), nothing written piece
by piece (`open(..., "wb")` publishes the part that was written before an error). A request of a client with a thread of
its own ends in a bounded time, and a range that came short is not taken for whole.
"""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.fs

from ray_learngene.errors import UserError
from ray_learngene.io import s3_settings
from ray_learngene.io.backend import Found, named_in
from ray_learngene.io.errors import NO_BUCKET, status_of, storage_errors, without_secrets
from ray_learngene.io.options import options_for
from ray_learngene.io.schemes import SCHEMES, words_of

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

RANGE_BYTES = 8 * 2**20
FIRST_BYTES = 2**20  # most objects that are read as a whole have fewer
RANGES = 4  # asked for at once
LIST_SECONDS = 300.0  # that the pages of a long list may take
THREADS = 16
LEAST_PER_SECOND = 2**17  # bytes that a client must move at least, on top of the time for one request
_BAD_FILES = (FileNotFoundError, PermissionError, IsADirectoryError)  # that credentials are read from
TIMES = ("LastModified", "last_modified", "mtime", "updated", "created")


def open_filesystem(scheme: str, path: str) -> tuple[AbstractFileSystem, str]:
    """Return the fsspec filesystem of a URI, which never answers from a list of earlier, and the path in it."""
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")  # else gcsfs asks a second service per bucket
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # it prints tracebacks of what it tries in another way
    from fsspec import url_to_fs  # only here: a local path needs none

    uri = f"{scheme}://{path}"
    options = ({"use_listings_cache": False} if scheme in SCHEMES else {}) | options_for(uri)
    try:
        opened, inside = url_to_fs(uri, skip_instance_cache=True, **options)
    except (TypeError, ValueError, ImportError, LookupError, *_BAD_FILES) as error:
        reason = without_secrets(" ".join(str(error).split()))[:300]
        if isinstance(error, ImportError):
            raise UserError(f"{scheme}:// needs a package that is not installed: {reason}") from None
        if isinstance(error, LookupError):
            reason = f"{reason} is missing there"
        needed = "its --storage-options" if isinstance(error, TypeError) else words_of(uri).keys
        raise UserError(f"{uri} cannot be opened: set {needed} ({reason})") from None
    return opened, inside


class FsspecStorage:
    """A storage of fsspec. Every method is safe in threads; a process that was forked needs an object of its own."""

    def __init__(self, scheme: str, root: str) -> None:
        self.scheme, self.root = scheme, root

    @cached_property
    def _opened(self) -> tuple[AbstractFileSystem, str]:
        return open_filesystem(self.scheme, self.root)

    def _call(self, method: str, *args: Any, moved: int = 0, seconds: float = 0.0, **kwargs: Any) -> Any:
        """Call a method of the client; one that moves bytes may take longer, and so many seconds more."""
        client = self._opened[0]
        if client.async_impl:
            usual = s3_settings.CONNECT_SECONDS + s3_settings.REQUEST_SECONDS
            kwargs["timeout"] = usual + seconds + moved / LEAST_PER_SECOND
        try:
            return getattr(client, method)(*args, **kwargs)
        except Exception as error:
            if isinstance(error, (UserError, *storage_errors())):
                raise
            # each client has its own idea of what to raise
            raise OSError(f"{type(error).__name__}: {error}") from error

    def _full(self, path: str) -> str:
        root = self._opened[1].rstrip("/")
        return f"{root}/{path}" if path else root

    def check(self, write: bool) -> None:
        if write and not (self.scheme in SCHEMES and SCHEMES[self.scheme].writes):
            raise UserError(
                f"{self.scheme}:// can only be read here: keep the store in a local folder, s3://, gs:// or abfs://"
            )
        try:
            self._call("ls", self._full(""), detail=False)
        except FileNotFoundError:
            bucket = self._full("").lstrip("/").partition("/")[0]
            if self.scheme != "memory" and not self._lists(bucket):
                raise self._no_bucket() from None

    def _no_bucket(self) -> UserError:
        uri = f"{self.scheme}://{self.root}"
        return UserError(NO_BUCKET.format(uri=uri, address=words_of(uri).address))

    def _lists(self, bucket: str) -> bool:
        try:
            self._call("ls", bucket, detail=False)
        except FileNotFoundError:
            return False
        return True

    def lists_at_once(self, path: str) -> bool:
        """Return whether a list shows an object that was just written."""
        folder, _, _ = path.rpartition("/")
        return any(found.path == path for found in self.look(folder))

    def read(self, path: str, most: int) -> bytes | None:
        first = min(most, FIRST_BYTES)
        try:
            data: bytes = self._call("cat_file", self._full(path), start=0, end=first, moved=first)
            if len(data) < first or first == most:
                return data
            end = min(self.size(path), most)
            return data + b"".join(receive(end, first, lambda start, stop: self.range(path, start, stop)))
        except FileNotFoundError:
            return None
        except storage_errors() as error:
            if status_of(error) == 416:  # an empty object has no first byte
                return b""
            raise

    def size(self, path: str) -> int:
        """Return the bytes of an object."""
        return int(self._call("info", self._full(path))["size"])

    def range(self, path: str, start: int, end: int) -> bytes:
        """Return the bytes `[start, end)` of an object."""
        data: bytes = self._call("cat_file", self._full(path), start=start, end=end, moved=end - start)
        if len(data) != end - start:
            raise ConnectionError(f"{len(data)} bytes came instead of {end - start}")
        return data

    def exists(self, path: str) -> bool:
        try:
            return bool(self._call("info", self._full(path))["type"] == "file")
        except FileNotFoundError:
            return False

    def put(self, path: str, data: bytes) -> None:
        self._write(path, data)

    def upload(self, source: Path, path: str) -> None:
        self._call("put_file", str(source), self._full(path), moved=source.stat().st_size)

    def create(self, path: str, data: bytes) -> bool:
        try:
            self._write(path, data, mode="create")
        except FileExistsError:
            return False
        return True

    def _write(self, path: str, data: bytes, mode: str = "overwrite") -> None:
        try:
            self._call("pipe_file", self._full(path), data, mode=mode, moved=len(data))
        except FileNotFoundError:
            raise self._no_bucket() from None

    def look(self, folder: str) -> Iterator[Found]:
        root = self._full("").strip("/")
        found = self._call("find", self._full(folder), detail=True, seconds=LIST_SECONDS)
        below = f"{self._full(folder).strip('/')}/"
        for name, info in found.items():
            if name.strip("/").startswith(below) and info["type"] == "file" and not name.endswith("/"):
                yield Found(name.strip("/")[len(root) + 1 :], int(info["size"] or 0), modified(info))

    def named(self, folder: str, name: str, depth: int) -> list[str]:
        return named_in(self.look(folder), folder, name, depth)

    def delete(self, paths: list[str]) -> None:
        if len(paths) == 1:
            self._delete(paths[0])
            return
        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(self._delete, paths))

    def _delete(self, path: str) -> None:
        with suppress(FileNotFoundError):
            self._call("rm_file", self._full(path))


def modified(info: dict[str, Any]) -> datetime:
    """When an object was written, as the client says; 1970 where it does not (no such scheme can be written)."""
    for name in TIMES:
        found = info.get(name)
        if isinstance(found, str):
            with suppress(ValueError):
                found = datetime.fromisoformat(found)
        if isinstance(found, int | float):
            found = datetime.fromtimestamp(found, UTC)
        if isinstance(found, datetime):
            return found if found.tzinfo else found.replace(tzinfo=UTC)
    return datetime.fromtimestamp(0, UTC)


class Handler(pyarrow.fs.FSSpecHandler):
    """pyarrow's, which also says when a file was written, so that a changed one is not taken from a cache."""

    @staticmethod
    def _create_file_info(path: str, info: dict[str, Any]) -> pyarrow.fs.FileInfo:
        if info["type"] != "file":
            return pyarrow.fs.FileInfo(path, pyarrow.fs.FileType.Directory)
        return pyarrow.fs.FileInfo(path, pyarrow.fs.FileType.File, size=info["size"], mtime=modified(info))


def arrow_filesystem(scheme: str, path: str) -> tuple[pyarrow.fs.FileSystem, str]:
    """Return a filesystem that pyarrow reads tables from."""
    opened, inside = open_filesystem(scheme, path)
    return pyarrow.fs.PyFileSystem(Handler(opened)), inside


def receive(size: int, offset: int, ranged: Callable[[int, int], bytes]) -> Iterator[bytes]:
    """Yield the bytes of an object from an offset on, in order; several ranges are asked for at once."""
    starts = iter(range(offset, size, RANGE_BYTES))
    with ThreadPoolExecutor(RANGES) as pool:
        ahead: deque[Future[bytes]] = deque()
        try:
            while True:
                for start in islice(starts, RANGES - len(ahead)):
                    ahead.append(pool.submit(ranged, start, min(size, start + RANGE_BYTES)))
                if not ahead:
                    return
                yield ahead.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

"""Read, write, create, upload, list and delete the objects below a store's root, the same for every storage.

Readers never see half an object: a local file gets its name when it is complete, and a bucket shows an object when its
upload is. Requests to a server that does not answer or fails are retried for a while. Errors that a retry cannot mend
(no permission, no bucket, no space) are raised at once.
"""

from __future__ import annotations

import io
import json
import logging
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cached_property, partial
from pathlib import Path
from typing import TypeVar

from ray_learngene.errors import UserError
from ray_learngene.io.backend import TEMPORARY, Found, IncompleteUpload
from ray_learngene.io.errors import Denied, clear_errors, explain, s3_code, storage_errors
from ray_learngene.io.fsspec_backend import FsspecStorage, receive
from ray_learngene.io.local import LocalStorage
from ray_learngene.io.multipart import PART_BYTES, Transfer
from ray_learngene.io.retry import RETRY_SECONDS, Retry
from ray_learngene.io.s3 import S3Storage
from ray_learngene.io.schemes import locate, words_of

__all__ = ["PROBES", "TEMPORARY", "Found", "IncompleteUpload", "Objects"]

MOST_BYTES = 2 * 2**30  # of what is read as a whole
THREADS = 16
DELETED_AT_ONCE = 1000
ABOUT = "store.json"
PROBES = (".check-", ".probe-")
UNSUPPORTED = {"NOTIMPLEMENTED", "501"}
UNLISTED = (
    "{uri} may be read here, but not listed: pull by name (learngene pull KIND/NAME --store {uri}), or set {keys} of "
    "an account that may list it"
)

T = TypeVar("T")

log = logging.getLogger(__name__)


class Objects:
    """The objects below one URI; paths are relative to it. Every method raises UserError if the storage refuses."""

    def __init__(self, uri: str, retry_seconds: float = RETRY_SECONDS) -> None:
        self.scheme, self.root = locate(uri)
        self.is_local = self.scheme == "file"
        self.uri = self.root if self.is_local else f"{self.scheme}://{self.root}"
        self.storage: LocalStorage | S3Storage | FsspecStorage
        if self.is_local:
            self.storage = LocalStorage(self.root)
        elif self.scheme == "s3":
            self.storage = S3Storage(self.root)
        else:
            self.storage = FsspecStorage(self.scheme, self.root)
        self.retry = Retry(retry_seconds)

    def _call(self, path: str, request: Callable[[], T]) -> T:
        """Make a request, which must be safe to repeat; retry it for a while, and raise a UserError about `path`."""
        return self.retry.wait_for(partial(_clear, self.uri_of(path), request))

    def open(self) -> None:
        """Make sure that the store, or its bucket, is there."""
        self._call("", lambda: self.storage.check(write=False))

    def full(self, path: str) -> str:
        """Return the path as pyarrow's filesystems take it."""
        return f"{self.root}/{path}" if path else self.root

    def uri_of(self, path: str) -> str:
        """Return the path as a user writes it."""
        return f"{self.uri}/{path}" if path else self.uri

    def check(self, write: bool) -> None:
        """Check that the store can be listed and read, and with `write` written.

        A server that does not answer is not asked again: its address may be wrong.
        """
        retry, self.retry = self.retry, Retry(self.retry.seconds, only_answers=True)
        try:
            try:
                self._call("", lambda: self.storage.check(write))
                self.read(ABOUT)
            except Denied:  # a user who may read, but not list, can pull by name
                if write or not self._may_read():
                    raise
            if write and not self.is_local:
                probe = f"{PROBES[0]}{uuid.uuid4().hex}/check"
                self.put(probe, b"check")
                listed = not isinstance(self.storage, FsspecStorage) or self.storage.lists_at_once(probe)
                self.delete(probe)
                if not listed:
                    raise UserError(f"{self.uri} does not list what was just written: keep the store elsewhere")
        finally:
            self.retry = retry

    def _may_read(self) -> bool:
        with suppress(UserError):
            return not self.is_local and self.read(ABOUT) is not None
        return False

    def each(self, calls: Iterable[Callable[[], T]], threads: int = THREADS) -> list[T]:
        """Return the results of many calls, made in threads; where one fails the others are not waited for."""
        with ThreadPoolExecutor(threads) as pool:
            futures = [pool.submit(call) for call in calls]
            try:
                return [future.result() for future in futures]
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                self.retry.give_up()
                pool.shutdown(wait=True)
                raise
            finally:
                self.retry.resume()

    def read(self, path: str, most: int = MOST_BYTES) -> bytes | None:
        """Return the content of an object, or None if it does not exist.

        Raises:
            UserError: It has more than `most` bytes.
        """
        data = self._call(path, lambda: self.storage.read(path, most + 1))
        if data is not None and len(data) > most:
            raise UserError(f"{self.uri_of(path)} has more than {most:,} bytes: this is not what belongs there")
        return data

    def read_many(self, paths: Iterable[str], most: int = MOST_BYTES) -> list[bytes | None]:
        """Return the contents of many small objects, in the order asked."""
        if self.is_local:
            return [self.read(path, most) for path in paths]
        return self.each(partial(self.read, path, most) for path in paths)

    def exists(self, path: str) -> bool:
        """Return whether there is an object, without reading it."""
        return self._call(path, lambda: self.storage.exists(path))

    def chunks(self, path: str, offset: int) -> Iterator[bytes]:
        """Yield the content of an object from a byte offset on, in pieces; nothing if it ends before the offset."""
        storage = self.storage
        if isinstance(storage, S3Storage):
            yield from self._transfer(storage, path).receive(offset)
        elif isinstance(storage, FsspecStorage):
            ranged: Callable[[int, int], bytes] = lambda start, end: self._call(  # noqa: E731
                path, partial(storage.range, path, start, end)
            )
            yield from receive(self._call(path, partial(storage.size, path)), offset, ranged)
        else:
            with clear_errors(self.uri_of(path)):
                yield from storage.pieces(path, offset)

    def _transfer(self, storage: S3Storage, path: str) -> Transfer:
        return Transfer(storage, path, partial(self._call, path))

    def put(self, path: str, data: bytes) -> None:
        """Write an object, replacing what was there as a whole."""
        self._call(path, lambda: self.storage.put(path, data))

    def upload(self, source: Path, path: str, sent: Callable[[int], object] = lambda size: None) -> None:
        """Copy a local file to an object, replacing what was there as a whole.

        Args:
            sent: Called with the number of bytes that have arrived since the last call; from any thread.
        """
        with clear_errors(str(source)), source.open("rb") as file:  # what is wrong with it is not said of the object
            size = file.seek(0, io.SEEK_END)
        if isinstance(self.storage, S3Storage) and size > PART_BYTES:
            self._transfer(self.storage, path).send(source, sent)
        else:
            self._call(path, lambda: self.storage.upload(source, path))
            sent(size)

    def create(self, path: str, data: bytes) -> bool:
        """Create an object; return False, and write nothing, if it exists.

        A retried create can find its own object. Callers that care compare contents.
        """
        if self.creates_once:
            return self._call(path, lambda: self._create(path, data))
        if self.exists(path):
            return False
        self.put(path, data)
        return True

    def _create(self, path: str, data: bytes) -> bool:
        return self.storage.create(path, data)

    @cached_property
    def creates_once(self) -> bool:
        """Whether the storage creates an object only if it is absent; tried and said once per store, then noted."""
        about = self.read(ABOUT)
        if about is not None:
            return self._remembered(about)
        answer = self.retry.wait_for(self._probe)
        self.put(ABOUT, json.dumps({"format": 1, "conditional_create": answer}).encode())
        if not answer:
            log.warning(
                "%s cannot create a file only if it is absent: two publishers of one name at once overwrite each "
                "other, so publish a name from one place at a time (this is said once per store)",
                self.uri,
            )
        return answer

    def _remembered(self, about: bytes) -> bool:
        try:
            return json.loads(about)["conditional_create"] is True
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise UserError(f"{self.uri_of(ABOUT)} is damaged: delete it, and it is made again") from error

    def _probe(self) -> bool:
        probe = f"{PROBES[1]}{uuid.uuid4().hex}"
        self.put(probe, b"first")
        try:
            return not self._create(probe, b"second")
        except storage_errors() as error:
            # Locally: a filesystem without hard links. S3: a server that knows no conditions, and says so.
            if self.is_local or s3_code(error) in UNSUPPORTED:
                return False
            raise explain(error, self.uri) from error
        finally:
            self.delete(probe)

    def find(self, folder: str) -> list[str]:
        """Return the sorted paths of all objects below a folder; none if the folder does not exist."""
        return [found.path for found in self.look(folder)]

    def named(self, folder: str, name: str, depth: int) -> list[str]:
        """Return the paths of the objects called `name` so many folders below a folder, sorted."""
        return sorted(self._listed(folder, lambda: self.storage.named(folder, name, depth)))

    def look(self, folder: str) -> list[Found]:
        """Return all objects below a folder, sorted by path; none if the folder does not exist."""
        return self._listed(folder, lambda: sorted(self.storage.look(folder), key=lambda one: one.path))

    def _listed(self, folder: str, request: Callable[[], T]) -> T:
        """Make a request that lists; see `_call`."""
        try:
            return self._call(folder, request)
        except Denied as error:
            if self._may_read():
                unlisted = UNLISTED.format(uri=self.uri, keys=words_of(self.uri).keys)
                raise Denied(f"{error}; {unlisted}") from error
            raise

    def delete(self, path: str) -> None:
        """Delete an object, if it exists."""
        self._call(path, lambda: self.storage.delete([path]))

    def delete_many(self, paths: Iterable[str]) -> None:
        """Delete objects, many in one request; missing ones are ignored."""
        todo = list(paths)
        for start in range(0, len(todo), DELETED_AT_ONCE):
            self._call("", partial(self.storage.delete, todo[start : start + DELETED_AT_ONCE]))

    def incomplete_uploads(self) -> list[IncompleteUpload]:
        """Return the multipart uploads below the root that were neither finished nor given up."""
        storage = self.storage
        return self._call("", storage.incomplete_uploads) if isinstance(storage, S3Storage) else []

    def give_up_upload(self, upload: IncompleteUpload) -> None:
        """Make the server forget a multipart upload and what it holds of it."""
        if isinstance(storage := self.storage, S3Storage):
            self._call(upload.path, lambda: storage.give_up_upload(upload.path, upload.id))


def _clear(uri: str, request: Callable[[], T]) -> T:
    with clear_errors(uri):
        return request()

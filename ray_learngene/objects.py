"""The bytes below a store's root: read, write, create if absent, upload, list and delete, locally and on S3 alike.

Nothing here is ever seen half written: locally a file gets its name only when it is complete, and S3 shows an object
only when its upload is. A server that does not answer or fails is waited for, as long as the patience allows; what
waiting cannot help (no permission, no bucket, no space) is told at once.
"""

from __future__ import annotations

import glob
import json
import logging
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property, partial
from pathlib import Path
from typing import Literal, TypeVar

import fsspec
import pyarrow.fs
from fsspec.asyn import sync

from ray_learngene import filesystems
from ray_learngene.errors import UserError
from ray_learngene.filesystems import filesystem, listing, locate
from ray_learngene.patience import PATIENCE_SECONDS, Patience, patient
from ray_learngene.storage_errors import clear_errors, explain, s3_code

CHUNK_BYTES = 8 * 2**20
MOST_BYTES = 2 * 2**30  # of what is read as a whole
THREADS = 16
DELETED_AT_ONCE = 1000
SLOWEST_BYTES = 100_000  # a second; a server that takes fewer is taken for one that does not answer
ABOUT = "store.json"
PROBES = (".check-", ".probe-")
TEMPORARY = ".tmp"
ABSENT = {"NOSUCHKEY", "404"}
EMPTY = {"INVALIDRANGE", "416"}
TAKEN = {"PRECONDITIONFAILED", "412", "CONDITIONALREQUESTCONFLICT", "409"}
UNSUPPORTED = {"NOTIMPLEMENTED", "501"}

T = TypeVar("T")

log = logging.getLogger("ray_learngene")


@dataclass(frozen=True)
class Found:
    """An object that a listing found."""

    path: str
    bytes: int
    modified: datetime


@dataclass(frozen=True)
class HalfUpload:
    """A multipart upload on S3 that was begun and neither finished nor given up."""

    path: str
    id: str
    begun: datetime


class Objects:
    """The objects below one URI; paths are relative to it. Every method raises UserError where the storage refuses."""

    def __init__(self, uri: str, patience: float = PATIENCE_SECONDS) -> None:
        scheme, self.root = locate(uri)
        self.is_local = scheme == "file"
        self.uri = self.root if self.is_local else f"s3://{self.root}"
        self.bucket, _, self.prefix = self.root.partition("/")
        self.patience = Patience(patience)

    # Opened where they are first used: neither survives a fork, and a Store is pickled into Ray's workers.
    @cached_property
    def list_fs(self) -> fsspec.AbstractFileSystem:
        """fsspec's filesystem, once the bucket is known to exist."""
        filesystem = listing(self.uri)[0]
        if not self.is_local:
            self._check_bucket(filesystem)  # some servers create a missing bucket on the first write, mistyped or not
        return filesystem

    @cached_property
    def bytes_fs(self) -> pyarrow.fs.FileSystem:
        """pyarrow's filesystem, once the bucket is known to exist."""
        assert self.list_fs is not None
        return filesystem(self.uri)[0]

    @patient
    def open(self) -> None:
        """Make sure that the bucket is there."""
        with clear_errors(self.uri):
            assert self.list_fs is not None

    def full(self, path: str) -> str:
        """The path within the filesystems."""
        return f"{self.root}/{path}" if path else self.root

    def uri_of(self, path: str) -> str:
        """The path as a user writes it."""
        return f"{self.uri}/{path}" if path else self.uri

    def check(self, write: bool) -> None:
        """Find out now, without patience, whether the store can be listed and read, and, if `write`, written."""
        patience, self.patience = self.patience, Patience(0)
        try:
            if self.is_local:
                self._check_folder(write)
            else:
                with clear_errors(self.uri):
                    self._check_bucket(self.list_fs)
            self.read(ABOUT)
            if write:
                probe = f"{PROBES[0]}{uuid.uuid4().hex}"
                self.put(probe, b"check")
                self.delete(probe)
        finally:
            self.patience = patience

    def _check_folder(self, write: bool) -> None:
        with clear_errors(self.uri):
            if write:
                Path(self.root).mkdir(parents=True, exist_ok=True)
            if not Path(self.root).exists():
                raise UserError(f"there is no store at {self.uri}: check the path")
            os.listdir(self.root)

    def _check_bucket(self, filesystem: fsspec.AbstractFileSystem) -> None:
        # Not s3fs's listing of the root, which does not tell an empty bucket from a missing one.
        prefix = self.prefix and f"{self.prefix}/"
        filesystem.call_s3("list_objects_v2", Bucket=self.bucket, Prefix=prefix, MaxKeys=1)

    def each(self, calls: Iterable[Callable[[], T]], threads: int = THREADS) -> list[T]:
        """The results of many calls, made in threads; where one fails the others are not waited for."""
        with ThreadPoolExecutor(threads) as pool:
            futures = [pool.submit(call) for call in calls]
            try:
                return [future.result() for future in futures]
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                self.patience.give_up()
                pool.shutdown(wait=True)
                raise
            finally:
                self.patience.resume()

    @patient
    def read(self, path: str, most: int = MOST_BYTES) -> bytes | None:
        """The content of an object, None where there is none.

        Raises:
            UserError: It has more than `most` bytes.
        """
        with clear_errors(self.uri_of(path)):
            data = self._read_file(path, most + 1) if self.is_local else self._get(path, most + 1)
        if data is not None and len(data) > most:
            raise UserError(f"{self.uri_of(path)} has more than {most:,} bytes: this is not what belongs there")
        return data

    def _read_file(self, path: str, most: int) -> bytes | None:
        try:
            with open(self.full(path), "rb") as file:
                return file.read(min(most, os.fstat(file.fileno()).st_size + 1))  # as much is allocated beforehand
        except FileNotFoundError:
            return None

    def _get(self, path: str, most: int) -> bytes | None:
        try:
            data: bytes = self.list_fs.cat_file(self.full(path), start=0, end=most)
        except FileNotFoundError as error:
            if s3_code(error) not in ABSENT:
                raise
            return None
        except OSError as error:
            if s3_code(error) in EMPTY:
                return b""
            raise
        return data

    def read_many(self, paths: Iterable[str], most: int = MOST_BYTES) -> list[bytes | None]:
        """The contents of many small objects, in the order asked."""
        if self.is_local:
            return [self.read(path, most) for path in paths]
        return self.each(partial(self.read, path, most) for path in paths)

    @patient
    def exists(self, path: str) -> bool:
        """Whether there is an object, without reading it."""
        with clear_errors(self.uri_of(path)):
            if self.is_local:
                return os.path.isfile(self.full(path))
            # Not a HEAD, whose answer cannot say why it is refused.
            key = self._key(path)["Key"]
            found = self.list_fs.call_s3("list_objects_v2", Bucket=self.bucket, Prefix=key, MaxKeys=1)
            return any(one["Key"] == key for one in found.get("Contents", ()))

    def _key(self, path: str) -> dict[str, str]:
        return {"Bucket": self.bucket, "Key": self.full(path).partition("/")[2]}

    def chunks(self, path: str, offset: int) -> Iterator[bytes]:
        """The content of an object from a byte offset on, in pieces; nothing where it ends before the offset."""
        file = self._open(path)
        with file:
            while chunk := self._chunk(file, path, offset):
                yield chunk
                offset += len(chunk)

    @patient
    def _open(self, path: str) -> pyarrow.NativeFile:
        with clear_errors(self.uri_of(path)):
            return self.bytes_fs.open_input_file(self.full(path))

    @patient
    def _chunk(self, file: pyarrow.NativeFile, path: str, offset: int) -> bytes:
        with clear_errors(self.uri_of(path)):
            size = file.size()
            # Each reads a range of its own, so one that broke off can be read again from the same file.
            return file.read_at(min(CHUNK_BYTES, size - offset), offset) if offset < size else b""

    @patient
    def put(self, path: str, data: bytes) -> None:
        """Write an object, replacing what was there as a whole."""
        with clear_errors(self.uri_of(path)):
            if self.is_local:
                self._write(path, lambda temporary: temporary.write_bytes(data), os.replace)
            else:
                self._send(path, data)

    @patient
    def upload(self, source: Path, path: str) -> None:
        """Copy a local file to an object, replacing what was there as a whole."""
        with clear_errors(self.uri_of(path)):
            if self.is_local:
                self._write(path, lambda temporary: shutil.copyfile(source, temporary), os.replace)
            elif source.stat().st_size <= CHUNK_BYTES:
                self._send(path, source.read_bytes())  # one request, where pyarrow makes three
            else:
                with source.open("rb") as file, self.bytes_fs.open_output_stream(self.full(path)) as stream:
                    shutil.copyfileobj(file, stream, CHUNK_BYTES)

    def _send(self, path: str, data: bytes, mode: Literal["overwrite", "create"] = "overwrite") -> None:
        """Write an S3 object in one request."""
        filesystem = self.list_fs
        # aiohttp's own timeout begins only when the body is sent, and before that it asks the server to go ahead.
        seconds = (filesystems.ATTEMPTS + 1) * filesystems.REQUEST_SECONDS + len(data) / SLOWEST_BYTES
        sync(filesystem.loop, filesystem._pipe_file, self.full(path), data, mode=mode, timeout=seconds)

    def _write(self, path: str, write: Callable[[Path], object], place: Callable[[Path, str], None]) -> None:
        """Write a local file under a temporary name beside its own, and put it in its place."""
        target = Path(self.full(path))
        temporary = target.with_name(f".{uuid.uuid4().hex}{TEMPORARY}")
        for attempt in (1, 2, 3):
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                write(temporary)
                place(temporary, str(target))
                return
            except FileNotFoundError:  # the folder was empty, and somebody who deleted its last file deleted it too
                if attempt == 3:
                    raise
            finally:
                temporary.unlink(missing_ok=True)

    @patient
    def create(self, path: str, data: bytes) -> bool:
        """Write an object if there is none; False, and nothing written, where there is one.

        A request that the server carried out although its answer was lost is repeated and then finds an object: who
        must tell that from another's compares the contents.
        """
        with clear_errors(self.uri_of(path)):
            if self.creates_once:
                return self._create(path, data)
        if self.exists(path):
            return False
        self.put(path, data)
        return True

    def _create(self, path: str, data: bytes) -> bool:
        try:
            if self.is_local:
                self._write(path, lambda temporary: temporary.write_bytes(data), os.link)
            else:
                self._send(path, data, mode="create")
        except FileExistsError:
            return False
        except OSError as error:
            if s3_code(error) in TAKEN:
                return False
            raise
        return True

    @cached_property
    def creates_once(self) -> bool:
        """Whether this storage can create an object only if it is absent: tried once per store and remembered in it."""
        about = self.read(ABOUT)
        if about is None:
            answer = self._probe()
            self.put(ABOUT, json.dumps({"format": 1, "conditional_create": answer}).encode())
        else:
            answer = self._remembered(about)
        if not answer:
            log.warning(
                "%s cannot create a file only if it is absent: two publishers of one name at once overwrite each other",
                self.uri,
            )
        return answer

    def _remembered(self, about: bytes) -> bool:
        try:
            return json.loads(about)["conditional_create"] is True
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise UserError(f"{self.uri_of(ABOUT)} is damaged: delete it, it is made anew") from error

    def _probe(self) -> bool:
        probe = f"{PROBES[1]}{uuid.uuid4().hex}"
        self.put(probe, b"first")
        try:
            return not self._create(probe, b"second")
        except OSError as error:
            # Locally: a filesystem without hard links. S3: a server that knows no conditions, and says so.
            if self.is_local or s3_code(error) in UNSUPPORTED:
                return False
            raise explain(error, self.uri) from error
        finally:
            self.delete(probe)

    def find(self, folder: str) -> list[str]:
        """The paths of all objects below a folder, sorted; none where there is no such folder."""
        return [found.path for found in self.look(folder)]

    def named(self, folder: str, name: str, depth: int) -> list[str]:
        """The paths of the objects called `name` so many folders below a folder, sorted."""
        if self.is_local:
            with clear_errors(self.uri_of(folder)):
                found = glob.glob("*/" * depth + name, root_dir=self.full(folder))
            return sorted(f"{folder}/{path}" for path in found)
        tail, slashes = f"/{name}", folder.count("/") + 1 + depth
        return [path for path in self.find(folder) if path.endswith(tail) and path.count("/") == slashes]

    @patient
    def look(self, folder: str) -> list[Found]:
        """All objects below a folder, sorted by path; none where there is no such folder."""
        with clear_errors(self.uri_of(folder)):
            found = self._walk(folder) if self.is_local else self._listed(folder)
            return sorted(found, key=lambda one: one.path)

    def _walk(self, folder: str) -> Iterator[Found]:
        try:
            entries = list(os.scandir(self.full(folder)))
        except (FileNotFoundError, NotADirectoryError):
            return
        for entry in entries:
            path = f"{folder}/{entry.name}" if folder else entry.name
            if entry.is_dir(follow_symlinks=False):
                yield from self._walk(path)
                continue
            with suppress(FileNotFoundError):
                stat = entry.stat()
                yield Found(path, stat.st_size, datetime.fromtimestamp(stat.st_mtime, UTC))

    def _listed(self, folder: str) -> Iterator[Found]:
        # Not the folder itself, which s3fs names where a server keeps a marker for it.
        below = f"{self.full(folder)}/"
        for path, info in self.list_fs.find(self.full(folder), detail=True).items():
            if path.startswith(below):
                yield Found(path.removeprefix(f"{self.root}/"), info["size"], info["LastModified"])

    @patient
    def delete(self, path: str) -> None:
        """Delete an object; nothing happens where there is none."""
        with clear_errors(self.uri_of(path)):
            filesystem = self.list_fs
            with suppress(FileNotFoundError):
                filesystem.rm_file(self.full(path))
            if self.is_local:
                self._tidy(os.path.dirname(self.full(path)))

    def _tidy(self, folder: str) -> None:
        """Remove local folders that are empty now; one that is not stays."""
        with suppress(OSError):
            while folder != self.root:
                os.rmdir(folder)
                folder = os.path.dirname(folder)

    def delete_many(self, paths: Iterable[str]) -> None:
        """Delete objects, many in one request; nothing happens where there are none."""
        todo = list(paths)
        if self.is_local:
            for path in todo:
                self.delete(path)
            return
        for start in range(0, len(todo), DELETED_AT_ONCE):
            self._delete_batch(todo[start : start + DELETED_AT_ONCE])

    @patient
    def _delete_batch(self, paths: list[str]) -> None:
        with clear_errors(self.uri):
            keys = [{"Key": self._key(path)["Key"]} for path in paths]
            answer = self.list_fs.call_s3("delete_objects", Bucket=self.bucket, Delete={"Objects": keys, "Quiet": True})
            for error in answer.get("Errors", ()):
                raise OSError(f"AWS Error {error.get('Code')} during DeleteObjects: {error.get('Key')}")

    @patient
    def half_uploads(self) -> list[HalfUpload]:
        """The multipart uploads below the root that were neither finished nor given up."""
        if self.is_local:
            return []
        found: list[HalfUpload] = []
        after: dict[str, str] = {}
        with clear_errors(self.uri):
            while True:
                answer = self.list_fs.call_s3("list_multipart_uploads", Bucket=self.bucket, **after)
                for one in answer.get("Uploads", ()):
                    path = f"{self.bucket}/{one['Key']}"
                    if path.startswith(f"{self.root}/"):
                        path = path.removeprefix(f"{self.root}/")
                        found.append(HalfUpload(path, one["UploadId"], one["Initiated"]))
                if not answer.get("IsTruncated"):
                    return found
                after = {"KeyMarker": answer["NextKeyMarker"], "UploadIdMarker": answer["NextUploadIdMarker"]}

    @patient
    def give_up_upload(self, upload: HalfUpload) -> None:
        """Make the server forget a multipart upload and what it holds of it."""
        with clear_errors(self.uri_of(upload.path)), suppress(FileNotFoundError):
            self.list_fs.call_s3("abort_multipart_upload", **self._key(upload.path), UploadId=upload.id)

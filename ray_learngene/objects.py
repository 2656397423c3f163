"""The bytes below a store's root: read, write, create if absent, upload, list and delete, locally and on S3 alike.

Nothing here is ever seen half written: locally a file gets its name only when it is complete, and S3 shows an object
only when its upload is.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path

import fsspec
import pyarrow.fs

from ray_learngene.errors import UserError
from ray_learngene.filesystems import clear_errors, explain, filesystem, listing, locate, s3_code

CHUNK_BYTES = 8 * 2**20
READERS = 16
ABOUT = "store.json"
TAKEN = {"PRECONDITIONFAILED", "412", "CONDITIONALREQUESTCONFLICT", "409"}
UNSUPPORTED = {"NOTIMPLEMENTED", "501"}

log = logging.getLogger("ray_learngene")


class Objects:
    """The objects below one URI; paths are relative to it. Every method raises UserError where the storage refuses."""

    def __init__(self, uri: str) -> None:
        scheme, self.root = locate(uri)
        self.is_local = scheme == "file"
        self.uri = self.root if self.is_local else f"s3://{self.root}"

    # Opened where they are first used: neither survives a fork, and a Store is pickled into Ray's workers.
    @cached_property
    def bytes_fs(self) -> pyarrow.fs.FileSystem:
        """pyarrow's filesystem, once the bucket is known to exist."""
        if not self.is_local:
            self._check_listing()  # some servers create a missing bucket on the first write, mistyped or not
        return filesystem(self.uri)[0]

    @cached_property
    def list_fs(self) -> fsspec.AbstractFileSystem:
        """fsspec's filesystem."""
        return listing(self.uri)[0]

    def full(self, path: str) -> str:
        """The path within the filesystems."""
        return f"{self.root}/{path}"

    def uri_of(self, path: str) -> str:
        """The path as a user writes it."""
        return f"{self.uri}/{path}"

    def check(self, write: bool) -> None:
        """Find out now whether the store can be listed and read, and, if `write`, written."""
        if self.is_local and write:
            with clear_errors(self.uri):
                Path(self.root).mkdir(parents=True, exist_ok=True)
        self._check_listing()
        self.read(ABOUT)
        if write:
            probe = f".check-{uuid.uuid4().hex}"
            self.put(probe, b"check")
            self.delete(probe)

    def _check_listing(self) -> None:
        with clear_errors(self.uri):
            if self.is_local:
                if not Path(self.root).exists():
                    raise UserError(f"there is no store at {self.uri}: check the path")
                os.listdir(self.root)
                return
            # Not s3fs's listing of the root, which does not tell an empty bucket from a missing one.
            bucket, _, prefix = self.root.partition("/")
            self.list_fs.call_s3("list_objects_v2", Bucket=bucket, Prefix=prefix and f"{prefix}/", MaxKeys=1)

    def read(self, path: str) -> bytes | None:
        """The content of an object, None where there is none."""
        with clear_errors(self.uri_of(path)):
            try:
                with self.bytes_fs.open_input_file(self.full(path)) as stream:
                    return stream.read()
            except FileNotFoundError:
                return None

    def read_many(self, paths: Iterable[str]) -> list[bytes | None]:
        """The contents of many small objects, in the order asked."""
        with ThreadPoolExecutor(READERS) as pool:
            return list(pool.map(self.read, paths))

    def chunks(self, path: str, offset: int) -> Iterator[bytes]:
        """The content of an object from a byte offset on, in pieces; nothing where it ends before the offset."""
        with clear_errors(self.uri_of(path)), self.bytes_fs.open_input_file(self.full(path)) as stream:
            if offset > stream.size():
                return
            stream.seek(offset)
            while chunk := stream.read(CHUNK_BYTES):
                yield chunk

    def put(self, path: str, data: bytes) -> None:
        """Write an object, replacing what was there as a whole."""
        with clear_errors(self.uri_of(path)):
            if not self.is_local:
                with self.bytes_fs.open_output_stream(self.full(path)) as stream:
                    stream.write(data)
                return
            with _beside(Path(self.full(path))) as temporary:
                temporary.write_bytes(data)
                os.replace(temporary, self.full(path))

    def upload(self, source: Path, path: str) -> None:
        """Copy a local file to an object, replacing what was there as a whole."""
        with clear_errors(self.uri_of(path)):
            if not self.is_local:
                with source.open("rb") as file, self.bytes_fs.open_output_stream(self.full(path)) as stream:
                    shutil.copyfileobj(file, stream, CHUNK_BYTES)
                return
            with _beside(Path(self.full(path))) as temporary:
                shutil.copyfile(source, temporary)
                os.replace(temporary, self.full(path))

    def create(self, path: str, data: bytes) -> bool:
        """Write an object if there is none; False, and nothing written, where there is one."""
        with clear_errors(self.uri_of(path)):
            if self.creates_once:
                return self._create(path, data)
        if self.read(path) is not None:
            return False
        self.put(path, data)
        return True

    def _create(self, path: str, data: bytes) -> bool:
        try:
            if self.is_local:
                with _beside(Path(self.full(path))) as temporary:
                    temporary.write_bytes(data)
                    os.link(temporary, self.full(path))
            else:
                self.list_fs.pipe_file(self.full(path), data, mode="create")
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
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{self.uri_of(ABOUT)} is damaged: delete it, it is made anew") from error

    def _probe(self) -> bool:
        probe = f".probe-{uuid.uuid4().hex}"
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
        with clear_errors(self.uri_of(folder)):
            found = self.list_fs.find(self.full(folder))
        # Not the folder itself, which s3fs names where a server keeps a marker for it.
        below = f"{self.full(folder).rstrip('/')}/"
        return sorted(path.removeprefix(f"{self.root}/") for path in found if path.startswith(below))

    def delete(self, path: str) -> None:
        """Delete an object; nothing happens where there is none."""
        with clear_errors(self.uri_of(path)), suppress(FileNotFoundError):
            self.list_fs.rm_file(self.full(path))
            if self.is_local and "/" in path:
                with suppress(OSError):  # an empty folder is of no use; one that is not empty stays
                    os.rmdir(os.path.dirname(self.full(path)))


@contextmanager
def _beside(path: Path) -> Iterator[Path]:
    """A temporary name in the folder of `path`, which is made if need be; nothing has that name afterwards."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)

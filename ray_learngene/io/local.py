"""Objects as files below a local folder: written under a temporary name and renamed when complete."""

from __future__ import annotations

import errno
import glob
import os
import shutil
import stat
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from ray_learngene.errors import UserError
from ray_learngene.io.backend import TEMPORARY, Found
from ray_learngene.io.errors import clear_errors

PIECE_BYTES = 2**20


def local_path(text: str | Path, flag: str = "--out") -> Path:
    """Return the absolute path of a local file or folder.

    Raises:
        UserError: its home directory is unknown, or it is the root.
    """
    try:
        path = Path(os.path.abspath(Path(text).expanduser()))
    except RuntimeError as error:
        raise UserError(f"{flag} {text}: {error}") from None
    if not path.name:
        raise UserError(f"{flag} {text}: name a place below it")
    return path


def writable_path(text: str | Path, flag: str = "--out") -> Path:
    """Return the absolute path of a file or folder to be made, after a file could be made where it will be.

    Raises:
        UserError: see `local_path`, or nothing can be written there.
    """
    path = local_path(text, flag)
    with clear_errors(f"{flag} {path}"):
        with suppress(FileNotFoundError):
            path.lstat()  # refuses a name that no file can have
        _try_to_write(path.parent)
    return path


def writable_file(text: str | Path, flag: str = "--out") -> Path:
    """Return the absolute path of a file to be made or replaced; see `writable_path`.

    Raises:
        UserError: it is a folder, or nothing can be written there.
    """
    path = writable_path(text, flag)
    if path.is_dir():
        raise UserError(f"{flag} {text} is a folder: name a file")
    return path


def _try_to_write(folder: Path) -> None:
    """Make a file in a folder, or in the nearest one above it that is there, and leave no trace."""
    there = next(each for each in (folder, *folder.parents) if os.path.lexists(each))
    try:
        with tempfile.TemporaryFile(dir=there) as file:
            file.write(b"check")
    except FileNotFoundError:  # /proc takes no files, and a link may lead nowhere
        raise PermissionError(errno.EACCES, "no file can be made", str(there)) from None


def open_file(path: str, buffering: int = -1) -> IO[bytes]:
    """Open a file for reading.

    Raises:
        UserError: It is a pipe or a device, for which one could wait for ever.
        OSError: What the operating system says.
    """
    file = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    mode = os.fstat(file).st_mode
    if stat.S_ISREG(mode):
        return os.fdopen(file, "rb", buffering)
    os.close(file)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    raise UserError(f"{path} is a pipe or a device, not a file: remove it")


class LocalStorage:
    """The storage in a local folder."""

    def __init__(self, root: str) -> None:
        self.root = root

    def _full(self, path: str) -> str:
        return f"{self.root}/{path}" if path else self.root

    def check(self, write: bool) -> None:
        root = Path(self.root)
        if write:  # the first object creates the folder: a command that fails before leaves none behind
            _try_to_write(root)
        elif not root.exists():
            raise UserError(f"there is no store at {self.root}: check the path")
        if root.exists():
            os.listdir(root)

    def read(self, path: str, most: int) -> bytes | None:
        try:
            with open_file(self._full(path)) as file:
                return file.read(min(most, os.fstat(file.fileno()).st_size + 1))  # as much is allocated beforehand
        except FileNotFoundError:
            return None

    def pieces(self, path: str, offset: int) -> Iterator[bytes]:
        """Yield the content of a file from a byte offset on."""
        with open_file(self._full(path), buffering=0) as file:
            file.seek(offset)
            while piece := file.read(PIECE_BYTES):
                yield piece

    def exists(self, path: str) -> bool:
        return os.path.isfile(self._full(path))

    def put(self, path: str, data: bytes) -> None:
        self._write(path, lambda temporary: temporary.write_bytes(data), os.replace)

    def upload(self, source: Path, path: str) -> None:
        self._write(path, lambda temporary: shutil.copyfile(source, temporary), os.replace)

    def create(self, path: str, data: bytes) -> bool:
        try:
            self._write(path, lambda temporary: temporary.write_bytes(data), os.link)
        except FileExistsError:
            return False
        return True

    def _write(self, path: str, write: Callable[[Path], object], place: Callable[[Path, str], None]) -> None:
        """Write a file under a temporary name in its folder, then move it to its name."""
        target = Path(self._full(path))
        temporary = target.with_name(f".{uuid.uuid4().hex}{TEMPORARY}")
        for attempt in (1, 2, 3):
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                write(temporary)
                place(temporary, str(target))
                return
            except FileNotFoundError:  # another process deleted the folder with its last file
                if attempt == 3:
                    raise
            finally:
                temporary.unlink(missing_ok=True)

    def look(self, folder: str) -> Iterator[Found]:
        try:
            entries = list(os.scandir(self._full(folder)))
        except (FileNotFoundError, NotADirectoryError):
            return
        for entry in entries:
            path = f"{folder}/{entry.name}" if folder else entry.name
            if entry.is_dir(follow_symlinks=False):
                yield from self.look(path)
                continue
            with suppress(FileNotFoundError):
                found = entry.stat()
                if stat.S_ISREG(found.st_mode):  # a pipe or a device is no object
                    yield Found(path, found.st_size, datetime.fromtimestamp(found.st_mtime, UTC))

    def named(self, folder: str, name: str, depth: int) -> list[str]:
        found = glob.glob("*/" * depth + name, root_dir=self._full(folder))
        return [f"{folder}/{path}" for path in found if self.exists(f"{folder}/{path}")]

    def delete(self, paths: list[str]) -> None:
        for path in map(self._full, paths):
            with suppress(FileNotFoundError):
                os.remove(path)
            self._tidy(os.path.dirname(path))

    def _tidy(self, folder: str) -> None:
        """Remove the folders that are empty."""
        with suppress(OSError):
            while folder != self.root:
                os.rmdir(folder)
                folder = os.path.dirname(folder)

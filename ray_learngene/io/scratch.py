"""Folders of one process: in TMPDIR, or next to what it writes. The next process removes what a killed one left."""

from __future__ import annotations

import os
import re
import shutil
import socket
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

_OLD_SECONDS = 86400.0  # for which nothing was written to a folder that is certainly left over
_NAME = re.compile(r"\.?learngene-(?P<host>.+)-(?P<process>\d+)-[0-9a-f]{32}")


def scratch_path() -> Path:
    """Return a path in TMPDIR for a folder of this process; the caller that makes the folder removes it."""
    parent = tempfile.gettempdir()
    _remove_leftovers(parent, "learngene-")
    return Path(parent, _name())


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """An empty folder in TMPDIR, removed at the end."""
    folder = scratch_path()
    folder.mkdir(mode=0o700)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def hidden_path(parent: Path) -> Path:
    """Return a path in `parent` for a hidden folder of this process; the caller that makes the folder removes it.

    The parent may be shared with hosts that are no more, so folders of other hosts are removed too when they are old.
    """
    _remove_leftovers(str(parent), ".learngene-", of_others=True)
    return parent / f".{_name()}"


def _name() -> str:
    return f"learngene-{_host()}-{os.getpid()}-{uuid.uuid4().hex}"


@cache
def _host() -> str:
    """Return a name for what process ids are valid in: containers of one host may share its name, not its processes."""
    with suppress(OSError):
        return f"{socket.gethostname()}-{os.stat('/proc/self/ns/pid').st_ino}"
    return socket.gethostname()


@cache
def _remove_leftovers(parent: str, prefix: str, of_others: bool = False) -> None:
    """Remove the folders of processes of this host that are no more, once in each process."""
    for path in Path(parent).glob(f"{prefix}*"):
        if match := _NAME.fullmatch(path.name):
            own = match["host"] == _host()
            if (own and not _runs(int(match["process"]))) or (not own and of_others and _is_old(path)):
                shutil.rmtree(path, ignore_errors=True)


def _runs(process: int) -> bool:
    with suppress(PermissionError):  # another user's
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return False
    return True


def _is_old(folder: Path) -> bool:
    with suppress(OSError):  # it is being removed, or may not be read
        newest = max(path.stat().st_mtime for path in (folder, *folder.rglob("*")))
        return time.time() - newest > _OLD_SECONDS
    return False

"""Folders for files on their way into or out of a store. What a killed process leaves is removed by the next one."""

from __future__ import annotations

import os
import re
import shutil
import socket
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

_NAME = re.compile(r"learngene-(?P<host>.+)-(?P<process>\d+)-[0-9a-f]{32}")


def scratch_path() -> Path:
    """Return a path in TMPDIR for a folder of this process; the caller that makes the folder removes it."""
    parent = tempfile.gettempdir()
    _remove_leftovers(parent)
    return Path(parent, f"learngene-{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex}")


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """An empty folder in TMPDIR, removed at the end."""
    folder = scratch_path()
    folder.mkdir(mode=0o700)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@cache
def _remove_leftovers(parent: str) -> None:
    """Remove the folders of processes of this host that are no more, once in each process."""
    for path in Path(parent).glob("learngene-*"):
        match = _NAME.fullmatch(path.name)
        if match and match["host"] == socket.gethostname() and not _runs(int(match["process"])):
            shutil.rmtree(path, ignore_errors=True)


def _runs(process: int) -> bool:
    with suppress(PermissionError):  # another user's
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return False
    return True

"""The operations of a storage: a local folder, a bucket prefix or another scheme. Errors are the library's own.

The rest of the package uses `Objects`, which adds retries and one-line errors.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Protocol

TEMPORARY = ".tmp"  # ending of a local file that is not complete yet


@dataclass(frozen=True)
class Found:
    """An object that a listing found."""

    path: str
    bytes: int
    modified: datetime


@dataclass(frozen=True)
class IncompleteUpload:
    """A multipart upload on S3 that was begun and neither finished nor given up."""

    path: str
    id: str
    begun: datetime


class Storage(Protocol):
    """Paths are relative to a root. Readers see an object whole or not at all.

    Every method raises the errors of the operating system or the client, and may be repeated.
    """

    def check(self, write: bool) -> None:
        """Check that the root exists and can be listed; create a local root that will be written."""

    def read(self, path: str, most: int) -> bytes | None:
        """Return at most `most` bytes of an object, or None if it does not exist."""

    def exists(self, path: str) -> bool: ...

    def put(self, path: str, data: bytes) -> None:
        """Write an object, replacing what was there."""

    def upload(self, source: Path, path: str) -> None:
        """Copy a local file to an object, replacing what was there."""

    def create(self, path: str, data: bytes) -> bool:
        """Create an object; return False if it exists."""

    def look(self, folder: str) -> Iterator[Found]:
        """Return all objects below a folder; none if the folder does not exist."""

    def named(self, folder: str, name: str, depth: int) -> list[str]:
        """Return the paths of the objects called `name`, `depth` folders below a folder."""

    def delete(self, paths: list[str]) -> None:
        """Delete objects; missing ones are ignored."""

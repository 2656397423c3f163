"""What a place of objects can do, a local folder or a bucket prefix, in its own words and with its own errors.

`Objects` is what the rest of the package uses: it adds retries and one clear line for every error.
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
    """Paths are relative to a root. An object is seen whole or not at all.

    Every method raises what the operating system or the S3 client raises, and does no harm when it is repeated.
    """

    def check(self, write: bool) -> None:
        """Make sure that the root is there and can be listed; a local one that is to be written is made."""

    def read(self, path: str, most: int) -> bytes | None:
        """Up to `most` bytes of an object from its start, None where there is none."""

    def exists(self, path: str) -> bool: ...

    def put(self, path: str, data: bytes) -> None:
        """Write an object, replacing what was there."""

    def upload(self, source: Path, path: str) -> None:
        """Copy a local file to an object, replacing what was there."""

    def create(self, path: str, data: bytes) -> bool:
        """Write an object if there is none; False where there is one."""

    def look(self, folder: str) -> Iterator[Found]:
        """All objects below a folder; none where there is no such folder."""

    def named(self, folder: str, name: str, depth: int) -> list[str]:
        """The paths of the objects called `name` so many folders below a folder."""

    def delete(self, paths: list[str]) -> None:
        """Delete objects; nothing happens where there are none."""

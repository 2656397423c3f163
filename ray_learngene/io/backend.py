"""What the storages have in common: a local folder, a bucket prefix, or another scheme of fsspec.

Their methods are those of `Objects`, which says what each does and adds retries and one-line errors. Here errors are
the library's own. Paths are relative to a root. Readers see an object whole or not at all.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

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


def named_in(listed: Iterable[Found], folder: str, name: str, depth: int) -> list[str]:
    """Return the paths of listed objects called `name`, `depth` folders below a folder."""
    tail, slashes = f"/{name}", folder.count("/") + 1 + depth
    return [one.path for one in listed if one.path.endswith(tail) and one.path.count("/") == slashes]

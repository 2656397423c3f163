"""Image folders at a URI: a local copy, made once on each host, that is opened like any folder.

The copy lies in the cache of Parquet sets (parquet_cache.py), named by the address and every image's name, size and
time. An interrupted copy is continued.
"""

from __future__ import annotations

import hashlib
import json
import os
import posixpath
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ray_learngene.data.formats.files import EXTENSIONS, Files, is_system, not_read
from ray_learngene.data.formats.parquet_cache import COPIES, Room, cache_folder, cached
from ray_learngene.errors import UserError
from ray_learngene.io.backend import Found
from ray_learngene.io.errors import clear_errors

if TYPE_CHECKING:
    from ray_learngene.io.objects import Objects


def local_copy(uri: str, limit: float) -> tuple[Path, str | None]:
    """Return the local copy of the images below a URI, and what the user should know about other files there.

    Args:
        limit: Bytes that the cache may take; 0: no limit.

    Raises:
        UserError: There are no images, they do not fit, or the storage or the disk refuses.
    """
    from ray_learngene.io.objects import Objects  # only here: other image sets need no client of a storage

    objects = Objects(uri)
    if objects.is_local:
        return Path(objects.root), None
    images, others = _sorted_out(objects.look(""), uri)
    note = not_read(others.others, others.examples, uri)
    if not images:
        raise UserError(f"no *.parquet files and no images at {uri}: check the address{f'; {note}' if note else ''}")
    known = json.dumps([objects.uri, [(one.path, one.bytes, one.modified.isoformat()) for one in images]])
    path = cache_folder() / f"{hashlib.sha256(known.encode()).hexdigest()[:32]}{COPIES}"
    return cached(path, lambda: _copy(objects, images, path, limit)), note


def _sorted_out(found: Sequence[Found], uri: str) -> tuple[list[Found], Files]:
    images, others = [], Files()
    for one in found:
        parts = one.path.split("/")
        if any(map(is_system, parts)):
            continue
        if "" in parts:
            raise UserError(f"{uri} has an object {one.path!r}, whose name no file can have: rename it")
        ending = posixpath.splitext(one.path)[1].lower()
        if ending in EXTENSIONS:
            images.append(one)
        else:
            others.leave(ending or "without ending", one.path)
    return images, others


def _copy(objects: Objects, images: Sequence[Found], path: Path, limit: float) -> None:
    partial_copy = path.with_suffix(".partial")
    Room(path.parent, limit).make(sum(one.bytes for one in images))
    objects.each(partial(_fetch, objects, one, partial_copy) for one in images)
    os.replace(partial_copy, path)


def _fetch(objects: Objects, one: Found, folder: Path) -> None:
    target = folder / one.path
    if target.exists() and target.stat().st_size == one.bytes:
        return
    data = objects.read(one.path)
    if data is None or len(data) != one.bytes:
        raise UserError(f"{objects.uri_of(one.path)} changed while it was copied: run the command again")
    with clear_errors(str(folder)):
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)

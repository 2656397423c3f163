"""`learngene data convert`: any image set as resized Parquet shards, at any URI."""

from __future__ import annotations

import io
import itertools
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pyarrow as pa
from PIL import Image
from pyarrow.fs import FileSelector, FileSystem, FileType, LocalFileSystem

from ray_learngene.config import DataConfig
from ray_learngene.data.decode import readable, to_rgb
from ray_learngene.data.image_set import ImageSet
from ray_learngene.data.open import open_image_sets
from ray_learngene.data.parquet_cache import CLASSES_KEY
from ray_learngene.data.shards import Row, Shards
from ray_learngene.data.webdataset import Item, open_webdataset
from ray_learngene.errors import UserError
from ray_learngene.filesystems import filesystem
from ray_learngene.storage_errors import clear_errors

_CHUNK = 256


def convert(
    config: DataConfig,
    out: str,
    *,
    short_side: int | None = None,
    quality: int = 90,
    shard_bytes: int = 128 * 2**20,
    progress: Callable[[str, int], None] | None = None,
) -> dict[str, Any]:
    """Write both splits of an image set as `train-00000.parquet`, …, `val-00000.parquet`, … into an empty folder.

    Columns are `image` (encoded), `label` (class name; class index where the source is a WebDataset) and `name`. Images
    that need no resizing keep their bytes; resized ones become JPEG; pixels of array sets become PNG.

    Args:
        out: Folder or bucket prefix. The shards appear in it under their names when all of them are complete.
        short_side: Short side in pixels of what is larger; None resizes nothing.
        quality: JPEG quality of resized images.
        shard_bytes: Encoded images in a shard, about.
        progress: Called with the split and the number of its images read so far.

    Returns:
        `train` and `val` (numbers of images), `shards`, `bytes`, `skipped` (one line per image left out), `note`.

    Raises:
        UserError: the target is not empty or cannot be written, the set cannot be opened, or an image cannot be read.
    """
    target, folder = filesystem(out)
    with clear_errors(out):
        _require_empty(target, folder, out)
    note = None
    if config.data.startswith("wds/"):
        splits = open_webdataset(config.data.removeprefix("wds/"))
        schema = pa.schema([("image", pa.binary()), ("label", pa.int64()), ("name", pa.string())])
    else:
        sets = open_image_sets(config)
        note = sets.note
        if twice := [name for name, count in Counter(sets.train.classes).items() if count > 1]:
            raise UserError(f"{config.data} has two classes {twice[0]!r}: shards tell them by name; rename one")
        splits = {"train": _items(sets.train), "val": _items(sets.val)}
        metadata = {CLASSES_KEY: json.dumps(sets.train.classes)}
        schema = pa.schema([("image", pa.binary()), ("label", pa.string()), ("name", pa.string())], metadata)

    if isinstance(target, LocalFileSystem):
        with clear_errors(out):
            target.create_dir(folder, recursive=True)

    def encode(item: Item) -> Row | str:
        try:
            return Row(_encode(item, short_side, quality), item.label, item.name)
        except UserError as error:
            if config.unreadable == "skip":
                return str(error)
            raise UserError(f"{error}, or leave it out: --unreadable skip") from None

    counts = {"train": 0, "val": 0}
    skipped: list[str] = []
    with clear_errors(out), Shards(target, folder, schema, shard_bytes) as shards:
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:
            for split, items in splits.items():
                read = 0
                while chunk := list(itertools.islice(items, _CHUNK)):
                    for row in threads.map(encode, chunk):
                        if isinstance(row, str):
                            skipped.append(row)
                        else:
                            shards.add(split, row)
                            counts[split] += 1
                    read += len(chunk)
                    if progress is not None:
                        progress(split, read)
        shards.publish()
    return {**counts, "shards": len(shards.names), "bytes": shards.bytes, "skipped": skipped, "note": note}


def _require_empty(target: FileSystem, folder: str, out: str) -> None:
    if target.get_file_info(folder).type == FileType.File:
        raise UserError(f"{out} is a file: give a folder")
    found = target.get_file_info(FileSelector(folder, allow_not_found=True))
    if found:
        raise UserError(f"{out} is not empty (it has {found[0].base_name}): give another folder or empty it")


def _items(image_set: ImageSet) -> Iterator[Item]:
    for index, label in enumerate(image_set.labels):
        data: bytes | Image.Image | UserError | None
        try:
            with readable(partial(image_set.describe, index)):
                data = image_set.encoded(index)
                data = image_set.open(index) if data is None else data
        except UserError as error:
            data = error
        yield Item(image_set.describe(index), image_set.classes[label], data)


def _encode(item: Item, short_side: int | None, quality: int) -> bytes:
    """The image's own bytes where it is small enough, else a resized JPEG (PNG for pixels)."""
    if isinstance(item.data, UserError):
        raise item.data
    with readable(lambda: item.name):
        if isinstance(item.data, bytes):
            with Image.open(io.BytesIO(item.data)) as opened:
                image = to_rgb(opened)
        else:
            image = to_rgb(item.data)
    if short_side is not None and min(image.size) > short_side:
        scale = short_side / min(image.size)
        image = image.resize([max(short_side, round(side * scale)) for side in image.size], Image.Resampling.BICUBIC)
    elif isinstance(item.data, bytes):
        return item.data
    buffer = io.BytesIO()
    if isinstance(item.data, bytes):
        image.save(buffer, "JPEG", quality=quality)
    else:
        image.save(buffer, "PNG")
    return buffer.getvalue()

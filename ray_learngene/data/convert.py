"""`learngene data convert`: any image set as resized Parquet shards, at any URI."""

from __future__ import annotations

import io
import itertools
import json
import os
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple, Self

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from pyarrow.fs import FileSelector, FileSystem, FileType, LocalFileSystem

from ray_learngene.config import DataConfig
from ray_learngene.data.card import CARD, card_of, stated_license
from ray_learngene.data.decode import readable, to_rgb
from ray_learngene.data.formats.parquet_cache import CLASSES_KEY
from ray_learngene.data.formats.webdataset import UNLABELLED, Item, open_webdataset
from ray_learngene.data.image_set import ImageSet
from ray_learngene.data.open import open_image_sets
from ray_learngene.errors import UserError
from ray_learngene.io.errors import clear_errors
from ray_learngene.io.filesystems import filesystem
from ray_learngene.io.local import writable_path
from ray_learngene.progress import Progress, counted

_CHUNK = 256
_PARTIAL = ".partial"
_ROW_GROUP_BYTES = 16 * 2**20


def convert(
    config: DataConfig,
    out: str,
    *,
    short_side: int | None = None,
    quality: int = 90,
    shard_bytes: int = 128 * 2**20,
) -> dict[str, Any]:
    """Write both splits of an image set as `train-00000.parquet`, …, `val-00000.parquet`, … into an empty folder.

    Columns are `image` (encoded), `label` (class name; class index where the source is a WebDataset) and `name`. Images
    that need no resizing keep their bytes; resized ones become JPEG; pixels of array sets become PNG. A card with the
    licence of the set is written next to them if the set's own card states one.

    Args:
        out: Folder or bucket prefix. The shards appear in it under their names when all of them are complete.
        short_side: Short side in pixels of what is larger; None resizes nothing.
        quality: JPEG quality of resized images.
        shard_bytes: Encoded images in a shard, about.

    Returns:
        `train` and `val` (numbers of images), `shards`, `bytes`, `skipped` (one line per image left out), `note`.

    Raises:
        UserError: the target is not empty or cannot be written, the set cannot be opened, or an image cannot be read.
    """
    target, folder = filesystem(out)
    with clear_errors(out):
        _require_empty(target, folder, out)
    if isinstance(target, LocalFileSystem):
        writable_path(f"{folder}/train-00000.parquet")  # here, not after all images were found
    source = _source(config)
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
    unlabelled, skipped = 0, list[str]()
    progress = Progress(f"convert {config.data}", source.total, "images")
    with clear_errors(out), Shards(target, folder, source.schema, shard_bytes) as shards, progress:
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:
            for split, items in source.splits.items():
                while chunk := list(itertools.islice(items, _CHUNK)):
                    labelled = [item for item in chunk if item.label != UNLABELLED]
                    unlabelled += len(chunk) - len(labelled)
                    for row in threads.map(encode, labelled):
                        progress.advance()
                        if isinstance(row, str):
                            skipped.append(row)
                        else:
                            shards.add(split, row)
                            counts[split] += 1
                    progress.advance(len(chunk) - len(labelled))
        shards.publish()
        if source.license:
            with target.open_output_stream(f"{folder}/{CARD}") as card:
                card.write(card_of(source.license).encode())
    note = source.note
    if unlabelled:
        note = f"left out {counted(unlabelled, 'image')} of the test split of {config.data}, which have no labels"
    return {**counts, "shards": len(shards.names), "bytes": shards.bytes, "skipped": skipped, "note": note}


class _Source(NamedTuple):
    splits: dict[str, Iterator[Item]]
    schema: pa.Schema
    total: int = 0  # images; tar files do not say
    note: str | None = None
    license: str | None = None


def _source(config: DataConfig) -> _Source:
    """Open what is converted."""
    columns = {"image": pa.binary(), "label": pa.string(), "name": pa.string()}
    if config.data.startswith("wds/"):
        tars, schema = config.data.removeprefix("wds/"), pa.schema({**columns, "label": pa.int64()})
        return _Source(open_webdataset(tars), schema, license=stated_license(tars))
    sets = open_image_sets(config, labelled=False)  # perhaps for a distillation without them
    if twice := [name for name, count in Counter(sets.train.classes).items() if count > 1]:
        raise UserError(f"{config.data} has two classes {twice[0]!r}: shards tell them by name; rename one")
    schema = pa.schema(columns, {CLASSES_KEY: json.dumps(sets.train.classes)})
    splits = {"train": _items(sets.train), "val": _items(sets.val)}
    return _Source(splits, schema, len(sets.train) + len(sets.val), sets.note, sets.license)


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
    """Return the image's own bytes where it is small enough, else a resized JPEG (PNG for pixels)."""
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
    with readable(lambda: item.name):  # a JPEG has at most 65,500 rows
        if isinstance(item.data, bytes):
            image.save(buffer, "JPEG", quality=quality)
        else:
            image.save(buffer, "PNG")
    return buffer.getvalue()


class Row(NamedTuple):
    """One row of a shard; `image` is encoded."""

    image: bytes
    label: int | str
    name: str


class Shards:
    """Shards `SPLIT-00000.parquet`, … in a folder; left without `publish`, the context removes them.

    `names` are those of the shards so far and `bytes` the size of the images in them.
    """

    def __init__(self, target: FileSystem, folder: str, schema: pa.Schema, shard_bytes: int) -> None:
        self.target, self.folder, self.schema, self.shard_bytes = target, folder, schema, shard_bytes
        self.names: list[str] = []
        self.bytes = 0
        self._split = ""
        self._number = 0
        self._rows: list[Row] = []
        self._pending_bytes = self._shard_bytes = 0
        self._writer: pq.ParquetWriter | None = None
        self._published = False

    def add(self, split: str, row: Row) -> None:
        """Append a row; the rows of one split come after each other."""
        if split != self._split:
            self._close()
            self._split, self._number = split, 0
        self._rows.append(row)
        self._pending_bytes += len(row.image)
        if self._pending_bytes >= min(_ROW_GROUP_BYTES, self.shard_bytes):
            self._flush()
        if self._shard_bytes >= self.shard_bytes:
            self._close()

    def publish(self) -> None:
        """Finish the last shard and give all of them their names."""
        self._close()
        for name in self.names:
            self.target.move(f"{self.folder}/{name}{_PARTIAL}", f"{self.folder}/{name}")
        self._published = True

    def _flush(self) -> None:
        if not self._rows:
            return
        if self._writer is None:
            name = f"{self._split}-{self._number:05d}.parquet"
            self.names.append(name)
            self._number += 1
            self._writer = pq.ParquetWriter(
                f"{self.folder}/{name}{_PARTIAL}",
                self.schema,
                filesystem=self.target,
                compression={"image": "none", "label": "zstd", "name": "zstd"},  # images are compressed already
                use_dictionary=["label"],
                write_statistics=["label"],
            )
        self._writer.write_table(pa.table(list(zip(*self._rows, strict=True)), schema=self.schema))
        self.bytes += self._pending_bytes
        self._shard_bytes += self._pending_bytes
        self._rows, self._pending_bytes = [], 0

    def _close(self) -> None:
        self._flush()
        if self._writer is not None:
            self._writer.close()
        self._writer, self._shard_bytes = None, 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self._published:
            return
        if self._writer is not None:
            self._writer.close()
        for name in self.names:
            for path in (f"{self.folder}/{name}{_PARTIAL}", f"{self.folder}/{name}"):
                if self.target.get_file_info(path).is_file:
                    self.target.delete_file(path)

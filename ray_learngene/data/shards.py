"""Writes Parquet shards that get their names only when all of them are complete."""

from __future__ import annotations

from types import TracebackType
from typing import NamedTuple, Self

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow.fs import FileSystem

_PARTIAL = ".partial"
_ROW_GROUP_BYTES = 16 * 2**20


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

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._published:
            return
        if self._writer is not None:
            self._writer.close()
        for name in self.names:
            for path in (f"{self.folder}/{name}{_PARTIAL}", f"{self.folder}/{name}"):
                if self.target.get_file_info(path).is_file:
                    self.target.delete_file(path)

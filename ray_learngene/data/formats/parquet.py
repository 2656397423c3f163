"""Image sets in Parquet files: one file, a folder, or a bucket prefix, at any URI."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image
from pyarrow.fs import FileSelector, FileSystem

from ray_learngene.config import DataConfig
from ray_learngene.data.formats.parquet_cache import CLASSES_KEY, Source, cached_rows
from ray_learngene.data.formats.split_names import group_by_split, split_of
from ray_learngene.data.image_set import ImageSet, ImageSets, Labels, Subset, hold_out_noted
from ray_learngene.errors import UserError
from ray_learngene.io.errors import clear_errors
from ray_learngene.io.filesystems import filesystem


class Rows:
    """The memory-mapped rows of some files. Pickled, it is their address: where it arrives, they are mapped again."""

    def __init__(self, source: Source, cache_limit: float, path: Path | None = None, length: int | None = None) -> None:
        self.source, self.cache_limit = source, cache_limit
        self.path = path if path is not None and path.exists() else cached_rows(source, cache_limit)
        self.table: pa.Table = pa.ipc.open_file(pa.memory_map(str(self.path))).read_all()
        if length is not None and length != len(self):
            raise UserError(f"{source.uri} has {len(self)} rows here and {length} where the run started: copy it again")
        classes = (self.table.schema.metadata or {}).get(CLASSES_KEY)
        self.classes: list[str] | None = json.loads(classes) if classes else None

    def __reduce__(self) -> tuple[type[Rows], tuple[Source, float, Path, int]]:
        return Rows, (self.source, self.cache_limit, self.path, len(self))

    def __len__(self) -> int:
        return self.table.num_rows

    def describe(self, index: int) -> str:
        return f"{self.source.names[self.table['file'][index].as_py()]} row {self.table['row'][index].as_py()}"


class ParquetSet(ImageSet):
    """Encoded images in rows."""

    def __init__(self, rows: Rows, labels: Labels, classes: tuple[str, ...]) -> None:
        self.rows, self.labels, self.classes = rows, labels, classes

    def open(self, index: int) -> Image.Image:
        return Image.open(io.BytesIO(self.encoded(index)))

    def encoded(self, index: int) -> bytes:
        return self.rows.table["image"][index].as_py()

    def describe(self, index: int) -> str:
        return self.rows.describe(index)

    def content(self) -> Iterator[bytes]:
        # Names and sizes of files and images, not times: a copy of the files is the same set.
        yield json.dumps(self.rows.source.names).encode()
        yield pc.binary_length(self.rows.table["image"]).to_numpy().tobytes()


def open_parquet(config: DataConfig) -> ImageSets:
    """Open the Parquet files at `config.data`; splits come from file or folder names, or from a column `split`.

    Raises:
        UserError: there are no files, or columns, labels or splits are not usable; names file and row, or class.
    """
    uri = config.data
    source, root = filesystem(uri)
    address = uri if "://" in uri else root  # a worker's current folder is another one
    with clear_errors(uri):
        found = find_files(source, root, ".parquet")
        single = source.get_file_info(root).is_file
    if not found:
        raise UserError(f"no *.parquet files at {uri}: check the address (image files must be in a local folder)")
    if single:
        address, groups = os.path.dirname(address), {"train": found}  # a set of its own, whatever its name says
    else:
        groups = group_by_split(found, uri)
    columns = (config.image_column, config.label_column)
    limit = config.cache_gb * 1e9
    rows = {split: Rows(Source(address, tuple(names), *columns), limit) for split, names in groups.items()}
    classes, labels = _labels(rows, uri)
    train = ParquetSet(rows["train"], labels["train"], classes)
    if "val" in rows:
        return ImageSets(train, ParquetSet(rows["val"], labels["val"], classes))
    if "split" in train.rows.table.column_names:
        return _split_by_column(train, config.holdout, uri)
    return hold_out_noted(train, config.holdout, uri)


def find_files(source: FileSystem, root: str, ending: str) -> list[str]:
    """The files below `root` (or `root` itself), by their sorted names relative to it; hidden ones are left out."""
    if source.get_file_info(root).is_file:
        return [os.path.basename(root)]
    selected = source.get_file_info(FileSelector(root, allow_not_found=True, recursive=True))
    names = (info.path[len(root) :].lstrip("/") for info in selected if info.is_file and info.path.endswith(ending))
    return sorted(name for name in names if not any(part.startswith((".", "_")) for part in name.split("/")))


def _split_by_column(whole: ParquetSet, holdout: float, uri: str) -> ImageSets:
    column = whole.rows.table["split"].to_numpy()
    members: dict[str | None, np.ndarray] = {}
    for value in dict.fromkeys(column):
        split = split_of(value) if isinstance(value, str) else None
        chosen = np.flatnonzero(column == value)
        if split is None:
            row = whole.describe(int(chosen[0]) if chosen.size else 0)
            raise UserError(f"{row}: split is {value!r}; it must be train, val, validation or test")
        members[split] = np.union1d(members.get(split, chosen), chosen)
    if "train" not in members:
        raise UserError(f"{uri}: column split has no rows of train; add some")
    train = Subset(whole, members["train"])
    val = members.get("val", members.get("test"))
    return hold_out_noted(train, holdout, uri) if val is None else ImageSets(train, Subset(whole, val))


def _labels(rows: dict[str, Rows], uri: str) -> tuple[tuple[str, ...], dict[str, Labels]]:
    columns = {split: each.table["label"] for split, each in rows.items()}
    kinds = {column.type for column in columns.values()}
    if len(kinds) > 1:
        raise UserError(f"{uri}: labels are class names in one split and indices in the other; write them alike")
    stored = rows["train"].classes
    if kinds == {pa.string()}:
        names = sorted(set().union(*(column.unique().to_pylist() for column in columns.values())))
        classes = stored if stored and set(names) <= set(stored) else names
        order = pa.array(classes, pa.string())
        indices = {split: pc.index_in(column, value_set=order) for split, column in columns.items()}
        return tuple(classes), {split: column.to_numpy().astype(np.int64) for split, column in indices.items()}
    labels = {split: column.to_numpy() for split, column in columns.items()}
    for split, values in labels.items():
        # More classes than rows cannot all have images; without this bound one wild label would ask for all memory.
        limit = len(stored) if stored else len(rows["train"])
        wrong = np.flatnonzero((values < 0) | (values >= limit))
        if wrong.size:
            where = rows[split].describe(int(wrong[0]))
            raise UserError(f"{where}: label {values[wrong[0]]} is out of range; labels are 0..classes-1 without gaps")
    count = 1 + int(max(values.max() for values in labels.values()))
    return tuple(stored or (str(label) for label in range(count))), labels

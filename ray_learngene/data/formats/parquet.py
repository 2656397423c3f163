"""Image sets in Parquet files: one file, a folder, or a bucket prefix, at any URI."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image
from pyarrow.fs import FileSelector, FileSystem, FileType, LocalFileSystem

from ray_learngene.config import DataConfig
from ray_learngene.data.class_names import same_name
from ray_learngene.data.formats.files import left_out, walk
from ray_learngene.data.formats.parquet_cache import UNLABELLED, Source, cached_rows, classes_in, differ
from ray_learngene.data.formats.split_names import group_by_split, split_of
from ray_learngene.data.image_set import ImageSet, ImageSets, Labels, Subset, hold_out_noted
from ray_learngene.errors import UserError
from ray_learngene.io.errors import clear_errors
from ray_learngene.io.filesystems import filesystem
from ray_learngene.progress import counted

_NO_FILE = {
    FileType.Unknown: "is a pipe or a device, not a file: remove it",
    FileType.NotFound: "links to a file that is not there: remove the link, or bring the file back",
}


class NoParquet(UserError):
    """There are no Parquet files at an address."""


class Rows:
    """The memory-mapped rows of some files. Pickled, it is their address: where it arrives, they are mapped again."""

    def __init__(self, source: Source, cache_limit: float, path: Path | None = None, length: int | None = None) -> None:
        self.source, self.cache_limit = source, cache_limit
        self.path = path if path is not None and path.exists() else cached_rows(source, cache_limit)
        try:
            self.table: pa.Table = pa.ipc.open_file(pa.memory_map(str(self.path))).read_all()
        except pa.ArrowInvalid:  # as after a power failure
            raise UserError(f"{self.path} is damaged: delete it, and it is written again") from None
        if length is not None and length != len(self):
            raise UserError(
                f"{source.uri} has {counted(len(self), 'row')} here and {length} where the run started: copy it again"
            )
        self.classes = classes_in(self.table.schema)

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
    """Open the Parquet files at `config.data`; splits come from file or folder names, or from `config.split_column`.

    A test split without labels is left out. With `validate_on="holdout"` no split to validate on is read.

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
        raise NoParquet(f"no *.parquet files at {uri}: check the address")
    if single:
        address, groups = os.path.dirname(address), {"train": found}  # a set of its own, whatever its name says
    elif config.split_column:
        groups = {"train": found}
    else:
        groups = group_by_split(found, uri)
    holdout_only = config.validate_on == "holdout" and len(groups) > 1
    if holdout_only:
        groups = {"train": groups["train"]}
    columns = (config.image_column, config.label_column, config.split_column or "split")
    limit = config.cache_gb * 1e9
    rows = {split: Rows(Source(address, tuple(names), *columns), limit) for split, names in groups.items()}
    whole = rows["train"]
    if config.split_column and "split" not in whole.table.column_names:
        raise UserError(f"{uri}: column {config.split_column!r} does not name splits; choose another --split-column")
    members = _rows_of_splits(whole, uri) if len(rows) == 1 and "split" in whole.table.column_names else None
    return _ImagesOf(rows, members, config, holdout_only).sets()


class _ImagesOf:
    """The splits of some rows, and their labels."""

    def __init__(
        self, rows: dict[str, Rows], members: dict[str, Labels] | None, config: DataConfig, holdout_only: bool
    ) -> None:
        self.rows, self.members, self.config, self.holdout_only = rows, members, config, holdout_only
        self.notes: list[str] = []

    def sets(self) -> ImageSets:
        config, uri = self.config, self.config.data
        validation = self._validation()
        classes, labels = _labels(self.rows, self._used(validation), uri)
        train: ImageSet = ParquetSet(self.rows["train"], labels["train"], classes)
        whole = train
        if self.members is not None:
            train = Subset(whole, self.members["train"])
        note = "\n".join(self.notes) or None
        if validation is not None and self.members is not None:
            return ImageSets(train, Subset(whole, self.members[validation]), note)
        if validation is not None:
            return ImageSets(train, ParquetSet(self.rows[validation], labels[validation], classes), note)
        if self.holdout_only:
            return ImageSets(train, train, note)
        return hold_out_noted(train, config.holdout, uri, note)

    def _validation(self) -> str | None:
        """Return the split to validate on; None where there is none, or none that is read."""
        splits = self.rows if self.members is None else self.members
        found = next((split for split in ("val", "test") if split in splits), None)
        if found and self.members is not None and self.config.validate_on == "holdout":
            self.holdout_only = True
            return None
        if found == "test" and self._unlabelled():
            self.notes.append(f"the test split of {self.config.data} has no labels: left out")
            self.rows.pop("test", None)
            return None
        return found

    def _unlabelled(self) -> bool:
        rows = self.rows["test"] if self.members is None else self.rows["train"]
        labels = rows.table["label"]
        if self.members is not None:
            labels = labels.take(pa.array(self.members["test"]))
        return set(labels.unique().to_pylist()) <= UNLABELLED

    def _used(self, validation: str | None) -> dict[str, Labels | None]:
        """Return the rows of every table whose labels are used; None: all."""
        if self.members is None:
            return dict.fromkeys(self.rows)
        chosen = [self.members["train"], *([self.members[validation]] if validation else [])]
        return {"train": np.union1d(chosen[0], chosen[-1])}


def find_files(source: FileSystem, root: str, ending: str) -> list[str]:
    """Return the files below `root` (or `root` itself), by their sorted names relative to it.

    Hidden ones are left out.
    """
    whole = source.get_file_info(root)
    if whole.type is FileType.Unknown:
        raise UserError(f"{root} {_NO_FILE[whole.type]}")
    if whole.is_file:
        return [os.path.basename(root)] if root.endswith(ending) else []
    found = {name: kind for name, kind in _below(source, root) if name.endswith(ending)}
    named = sorted(name for name in found if not any(map(left_out, name.split("/"))))
    for name in named:
        if reason := _NO_FILE.get(found[name]):
            raise UserError(f"{root}/{name} {reason}")
    return [name for name in named if found[name] is FileType.File]


def _below(source: FileSystem, root: str) -> Iterator[tuple[str, FileType]]:
    """What is below a folder, by its relative name; pyarrow would follow links round in circles."""
    if isinstance(source, LocalFileSystem) and os.path.isdir(root):
        for entry, name in walk(root):
            yield name, source.get_file_info(entry.path).type
    else:
        for info in source.get_file_info(FileSelector(root, allow_not_found=True, recursive=True)):
            yield info.path[len(root) :].lstrip("/"), info.type


def _rows_of_splits(rows: Rows, uri: str) -> dict[str, Labels]:
    """Return the rows of every split, as the column says."""
    column = rows.table["split"].to_numpy()
    members: dict[str, np.ndarray] = {}
    for value in dict.fromkeys(column):
        split = split_of(value) if isinstance(value, str) else None
        chosen = np.flatnonzero(column == value)
        if split is None:
            row = rows.describe(int(chosen[0]) if chosen.size else 0)
            raise UserError(f"{row}: split is {value!r}; it must be train, val, validation or test")
        members[split] = np.union1d(members.get(split, chosen), chosen)
    if "train" not in members:
        raise UserError(f"{uri}: column {rows.source.split_column} has no rows of train; add some")
    return members


def _labels(
    rows: dict[str, Rows], used: dict[str, Labels | None], uri: str
) -> tuple[tuple[str, ...], dict[str, Labels]]:
    """Return the classes, and the class index of every row; what the rows that are not used have is never looked at."""
    columns = {split: each.table["label"] for split, each in rows.items()}
    kinds = {column.type for column in columns.values()}
    if len(kinds) > 1:
        raise UserError(f"{uri}: labels are class names in one split and indices in the other; write them alike")
    stored = rows["train"].classes
    if kinds == {pa.string()}:
        read = (
            column if (part := used[split]) is None else column.take(pa.array(part))
            for split, column in columns.items()
        )
        names = sorted(set().union(*(column.unique().to_pylist() for column in read)))
        return _by_name(names, stored, columns)
    for split, each in rows.items():
        if differ(each.classes, stored):
            raise UserError(f"{uri}: class names of {split} differ from those of train; write both alike")
    labels = {split: column.to_numpy() for split, column in columns.items()}
    parts: dict[str, Labels] = {}
    for split, values in labels.items():
        chosen = used[split]
        parts[split] = np.arange(len(values)) if chosen is None else chosen
    for split, part in parts.items():
        values = labels[split][part]
        # More classes than rows cannot all have images; without this bound one wild label would ask for all memory.
        wrong = np.flatnonzero((values < 0) | (values >= (len(stored) if stored else len(rows["train"]))))
        if wrong.size:
            where = rows[split].describe(int(part[wrong[0]]))
            raise UserError(f"{where}: label {values[wrong[0]]} is out of range; labels are 0..classes-1 without gaps")
    count = 1 + max(int(labels[split][part].max()) for split, part in parts.items())
    return tuple(stored or (str(label) for label in range(count))), labels


def _by_name(
    names: Sequence[str], stored: Sequence[str] | None, columns: dict[str, pa.ChunkedArray]
) -> tuple[tuple[str, ...], dict[str, Labels]]:
    """Return the class indices of class names; spellings that differ in the encoding of accents alone are one class."""
    classes = list(stored) if stored and {*map(same_name, names)} <= {*map(same_name, stored)} else names
    first = {same_name(name): name for name in reversed(classes)}
    classes = list(dict.fromkeys(first[same_name(name)] for name in classes))
    position = {same_name(name): number for number, name in enumerate(classes)}
    every = dict.fromkeys([*classes, *(stored or ()), *names])
    spelled = {name: position[same_name(name)] for name in every if same_name(name) in position}
    order, index = pa.array(spelled, pa.string()), np.array([*spelled.values(), -1])
    found = {split: pc.fill_null(pc.index_in(column, value_set=order), -1) for split, column in columns.items()}
    return tuple(classes), {split: index[column.to_numpy()] for split, column in found.items()}

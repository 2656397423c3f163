"""Parquet files of any place as one local, memory-mapped Arrow file: random access at any size, one copy per host.

The cache lies under `$XDG_CACHE_HOME/ray_learngene` (default `~/.cache`); a file there may be deleted at any time and
is written again from its source. Its name is a hash of the source's address and of every file's name, size and time.
Where the cache has a limit, the files that were opened longest ago make room for a new one.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from operator import ne
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from filelock import FileLock
from pyarrow.fs import FileSystem

from ray_learngene.data.formats.split_names import split_of
from ray_learngene.errors import UserError
from ray_learngene.io.errors import clear_errors
from ray_learngene.io.filesystems import filesystem

CLASSES_KEY = b"ray_learngene.classes"
UNLABELLED = {-1, ""}  # what stands for the label of an image that has none
COPIES = ".images"  # ending of local copies of image folders; see remote_folder.py
_BATCH_ROWS = 256
_FORMAT = 1


@dataclass(frozen=True)
class Source:
    """Which Parquet files (relative names below an address) to read, and which of their columns."""

    uri: str
    names: tuple[str, ...]
    image_column: str
    label_column: str
    split_column: str = "split"

    def state(self) -> dict[str, Any]:
        """Return what it is known by in the cache: alike for all that name no split column."""
        return {key: value for key, value in asdict(self).items() if (key, value) != ("split_column", "split")}


def cached_rows(source: Source, limit: float = 0) -> Path:
    """Return the local Arrow file with the rows of all files in order; write it if it is not there yet.

    Its columns are `image` (encoded bytes), `label` (int64 or string), `file` (position in `source.names`) and `row`
    (within that file). If the source has a column of splits, there is `split` (string) too.

    Args:
        limit: Bytes that all files of the cache may take together; 0: no limit.

    Raises:
        UserError: a file or a column cannot be read, or an image or a label is missing; names file and row. Or the rows
            do not fit into the limit.
    """
    place, root = filesystem(source.uri)
    with clear_errors(source.uri):
        files = place.get_file_info([f"{root.rstrip('/')}/{name}" for name in source.names])
    for file, name in zip(files, source.names, strict=True):
        if not file.is_file:
            raise UserError(f"{name} is not in {source.uri} on this machine: put the set where all machines see it")
    state = [_FORMAT, source.state(), [(file.size, file.mtime_ns) for file in files]]
    folder = cache_folder()
    path = folder / f"{hashlib.sha256(json.dumps(state).encode()).hexdigest()[:32]}.arrow"

    def write() -> None:
        partial = path.with_suffix(".partial")
        try:
            _write(partial, _batches(place, [file.path for file in files], source), Room(folder, limit))
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)

    return cached(path, write)


def cache_folder() -> Path:
    """Return where local copies of image sets lie."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ray_learngene"


def cached(path: Path, write: Callable[[], object]) -> Path:
    """Return a path of the cache; written first where it is not there yet, by one process of a host."""
    _opened.add(path)
    with suppress(FileNotFoundError):
        os.utime(path)
        return path
    with clear_errors(str(path.parent)):
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):
            if not path.exists():
                write()
    return path


def _write(path: Path, batches: Iterator[pa.RecordBatch], room: Room) -> None:
    first = next(batches)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, first.schema) as writer:
        for batch in itertools.chain([first], batches):
            writer.write_batch(batch)
            room.make(sink.tell())


_opened: set[Path] = set()  # files of this process, which would only be written again


class Room:
    """Removes copies from the cache, those opened longest ago first, as a growing one needs their place."""

    def __init__(self, folder: Path, limit: float) -> None:
        self.limit = limit
        self.folder = folder
        paths = [*folder.glob("*.arrow"), *folder.glob(f"*{COPIES}")] if limit else []
        self.others = sorted(((path.stat().st_mtime_ns, _size(path), path) for path in paths), reverse=True)
        self.taken = sum(size for _, size, _ in self.others)

    def make(self, size: int) -> None:
        """Make room for a copy of so many bytes.

        Raises:
            UserError: There is not enough that can be removed.
        """
        while self.limit and self.taken + size > self.limit:
            oldest = next((each for each in reversed(self.others) if each[2] not in _opened), None)
            if oldest is None:
                raise UserError(
                    f"the local copies of this image set do not fit into --cache-gb {self.limit / 1e9:g} "
                    f"({self.folder}): allow more, or convert it with a smaller --short-side"
                )
            _, freed, path = oldest
            path.unlink(missing_ok=True) if path.is_file() else shutil.rmtree(path, ignore_errors=True)
            self.others.remove(oldest)
            self.taken -= freed


def _size(path: Path) -> int:
    return sum(each.stat().st_size for each in ([path] if path.is_file() else path.rglob("*")) if each.is_file())


def _batches(place: FileSystem, paths: Sequence[str], source: Source) -> Iterator[pa.RecordBatch]:
    schema: pa.Schema | None = None
    rows = 0
    for number, (path, name) in enumerate(zip(paths, source.names, strict=True)):
        with clear_errors(name), place.open_input_file(path) as stream, pq.ParquetFile(stream) as parquet:
            found = _schema(parquet.schema_arrow, name, source)
            schema = schema or found
            if not found.equals(schema):
                raise UserError(f"{name}: columns have other types than in {source.names[0]}; write all files alike")
            if found.field("label").type == pa.int64() and differ(classes_in(found), classes_in(schema)):
                raise UserError(f"{name}: class names differ from those of {source.names[0]}; write all files alike")
            row = 0
            used = (source.image_column, source.label_column, source.split_column)
            columns = [column for column in used if column in parquet.schema_arrow.names]
            for batch in parquet.iter_batches(_BATCH_ROWS, columns=columns):
                yield _cached_batch(batch, schema, source, number, row)
                row += batch.num_rows
            rows += row
    if not rows:
        raise UserError(f"{source.uri}: {', '.join(source.names[:3])} have no rows; add images")


def _schema(found: pa.Schema, name: str, source: Source) -> pa.Schema:
    image_column, label_column = source.image_column, source.label_column
    partitions = _partitions(name)
    for column, flag in ((image_column, "--image-column"), (label_column, "--label-column")):
        if column not in found.names and not (column == label_column and column in partitions):
            raise UserError(f"{name} has no column {column!r} but {', '.join(found.names)}: choose one with {flag}")
        if found.names.count(column) > 1:
            raise UserError(f"{name} has two columns {column!r}: rename one, or choose another with {flag}")
    image = found.field(image_column).type
    if pa.types.is_struct(image) and "bytes" in [field.name for field in image]:
        image = image.field("bytes").type
    if not any(kind(image) for kind in (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view)):
        raise UserError(
            f"{name}: column {image_column!r} is {image}, not encoded images; choose one with --image-column"
        )
    if label_column in found.names:
        label = _value_type(found.field(label_column).type)
    else:
        values = [_partitions(each).get(label_column, "") for each in source.names]
        label = pa.int64() if all(value.isdecimal() for value in values) else pa.string()
    if pa.types.is_integer(label):
        label = pa.int64()
    elif _is_text(label):
        label = pa.string()
    else:
        raise UserError(
            f"{name}: column {label_column!r} is {label}, not class index or name; choose one with --label-column"
        )
    fields = [("image", pa.large_binary()), ("label", label), ("file", pa.int32()), ("row", pa.int64())]
    split = source.split_column
    if split in partitions or (split in found.names and _is_text(_value_type(found.field(split).type))):
        fields.append(("split", pa.string()))
    elif split != "split":
        raise UserError(
            f"{name} has no text column {split!r} but {', '.join(found.names)}: choose another --split-column"
        )
    classes = _stored_classes(found.metadata or {}, label_column)
    return pa.schema(fields, {CLASSES_KEY: json.dumps(classes).encode()} if classes else None)


def _partitions(name: str) -> dict[str, str]:
    """Return the columns that the folders of a file stand for, as in `split=train/label=3/0.parquet`."""
    pairs = (folder.partition("=") for folder in name.split("/")[:-1])
    return {unquote(key): unquote(value) for key, equals, value in pairs if equals}


def _value_type(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _stored_classes(metadata: dict[bytes, bytes], label_column: str) -> list[str] | None:
    """Return the class names in order, as `learngene data convert` or the Hugging Face hub writes them."""
    try:
        if CLASSES_KEY in metadata:
            found = json.loads(metadata[CLASSES_KEY])
        else:
            found = json.loads(metadata[b"huggingface"])["info"]["features"][label_column]["names"]
    except (ValueError, LookupError, TypeError, RecursionError):  # none, or another program's
        return None
    return found if isinstance(found, list) and all(isinstance(name, str) for name in found) else None


def classes_in(schema: pa.Schema) -> list[str] | None:
    """Return the class names in the schema of a cached table."""
    classes = (schema.metadata or {}).get(CLASSES_KEY)
    return json.loads(classes) if classes else None


def differ(one: Sequence[str] | None, other: Sequence[str] | None) -> bool:
    """Check whether an index stands for other classes; names that are not known say nothing."""
    return any(map(ne, one or (), other or ()))


def _cached_batch(batch: pa.RecordBatch, schema: pa.Schema, source: Source, number: int, row: int) -> pa.RecordBatch:
    """Return a batch of the source, whose first row is `row` of file `number`, in the columns of the cache."""
    image = batch.column(source.image_column)
    if pa.types.is_struct(image.type):
        image = pc.struct_field(image, "bytes")
    name = source.names[number]
    partitions = _partitions(name)

    def column(of: str) -> pa.Array:
        if of in batch.schema.names:
            return batch.column(of)
        return pa.array([partitions[of]] * batch.num_rows)

    columns = {
        "image": image,
        "label": column(source.label_column),
        "file": pa.array([number] * batch.num_rows),
        "row": pa.array(range(row, row + batch.num_rows)),
    }
    if "split" in schema.names:
        columns["split"] = column(source.split_column)
    kind = schema.field("label").type
    columns["label"] = _filled_test_labels(columns["label"].cast(kind), columns.get("split"), name)
    for each, what in (("image", "image bytes"), ("label", "label")):
        if columns[each].null_count:
            missing = row + pc.index(columns[each].is_null(), True).as_py()
            raise UserError(f"{name} row {missing}: no {what}; fill it in or remove the row")
    return pa.RecordBatch.from_arrays([columns[field.name].cast(field.type) for field in schema], schema=schema)


def _filled_test_labels(labels: pa.Array, splits: pa.Array | None, name: str) -> pa.Array:
    """Return the labels where the rows of a test split may lack theirs."""
    if not labels.null_count:
        return labels
    if splits is None:
        tested = pa.array([split_of(name) == "test"] * len(labels))
    else:
        tested = pa.array([split_of(value or "") == "test" for value in splits.to_pylist()])
    nothing = pa.scalar(-1 if pa.types.is_integer(labels.type) else "", labels.type)
    return pc.if_else(pc.and_(tested, labels.is_null()), nothing, labels)

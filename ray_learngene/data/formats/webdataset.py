"""WebDataset shards (`wds/PATH`, at any URI): tar files of `KEY.jpg` next to `KEY.cls`; a stream for `convert`."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from PIL import Image
from pyarrow import NativeFile
from pyarrow.fs import FileSystem

from ray_learngene.data.formats.files import EXTENSIONS, is_system
from ray_learngene.data.formats.parquet import find_files
from ray_learngene.data.formats.split_names import group_by_split
from ray_learngene.errors import UserError
from ray_learngene.io.errors import clear_errors
from ray_learngene.io.filesystems import filesystem

_IMAGES = tuple(ending.removeprefix(".") for ending in EXTENSIONS)
UNLABELLED = -1
_MOST_CLASSES = 2**31


class Item(NamedTuple):
    """One image on its way into a shard: encoded bytes, pixels where the source has no bytes, or why it has neither.

    An image of a test split may have no label; it is -1 then.
    """

    name: str
    label: int | str
    data: bytes | Image.Image | UserError


def open_webdataset(uri: str) -> dict[str, Iterator[Item]]:
    """Return the items of every split; splits come from the names of the tar files, else all is `train`.

    Raises:
        UserError: there are no tar files; while reading: a tar file cannot be read, or a sample lacks image or label.
    """
    source, root = filesystem(uri)
    with clear_errors(uri):
        found = find_files(source, root, ".tar")
    if not found:
        raise UserError(f"no *.tar files at {uri}: check the address")
    single = source.get_file_info(root).is_file
    groups = {"train": found} if single else group_by_split(found, uri)  # one file is all there is, whatever its name
    root = os.path.dirname(root) if single else root
    return {
        "val" if split == "test" else split: _items(source, [f"{root}/{name}" for name in names], split)
        for split, names in groups.items()
    }


def _items(source: FileSystem, paths: Sequence[str], split: str) -> Iterator[Item]:
    for path in paths:
        try:
            with clear_errors(path), source.open_input_stream(path) as stream, _opened(stream) as tar:
                yield from _samples(tar, path, split)
        except tarfile.TarError as error:
            raise UserError(f"{path} cannot be read as a tar file: {error}; copy it again") from None


def _opened(stream: NativeFile) -> tarfile.TarFile:
    return tarfile.open(fileobj=stream, mode="r|*", errors="backslashreplace")  # names may be no UTF-8


def _samples(tar: tarfile.TarFile, path: str, split: str) -> Iterator[Item]:
    key = ""
    fields: dict[str, bytes] = {}
    for member in tar:
        if not member.isfile() or any(is_system(part) for part in member.name.split("/") if part != "."):
            continue
        folder, _, base = member.name.rpartition("/")
        stem, _, ending = base.partition(".")
        if f"{folder}/{stem}" != key and fields:
            yield _item(fields, key, path, split)
            fields = {}
        key = f"{folder}/{stem}"
        content = tar.extractfile(member)
        assert content is not None, "a regular file has content"
        fields[ending.lower()] = content.read()
    if fields:
        yield _item(fields, key, path, split)


def _item(fields: dict[str, bytes], key: str, path: str, split: str) -> Item:
    name = f"{path}:{key.lstrip('/')}"
    image = next((fields[ending] for ending in _IMAGES if ending in fields), None)
    if image is None:
        raise UserError(f"{name} has no image ({', '.join(_IMAGES)}): it has {', '.join(fields)}")
    try:
        label = int(fields.get("cls", UNLABELLED if split == "test" else b""))
    except ValueError:
        raise UserError(f"{name} has no class index in a .cls file; write the shards again with one") from None
    if not 0 <= label < _MOST_CLASSES and (split != "test" or label != UNLABELLED):
        raise UserError(f"{name}: label {label} is no class index; write the shards again with one")
    return Item(name, label, image)

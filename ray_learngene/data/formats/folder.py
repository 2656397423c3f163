"""A folder of class folders, with or without train/ and val/ above them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa
from PIL import Image

from ray_learngene.data.formats.split_names import _PLAIN, _SPLIT, _only
from ray_learngene.data.image_set import ImageSet, ImageSets, Labels, hold_out_noted
from ray_learngene.errors import UserError
from ray_learngene.io.errors import clear_errors

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")


class FolderSet(ImageSet):
    """Image files by relative name."""

    def __init__(self, root: str, names: Sequence[str], labels: Labels, classes: tuple[str, ...]) -> None:
        self.root, self.labels, self.classes = root, labels, classes
        # An Arrow array, not a list: a million names stay shared between loader processes.
        self._names = pa.array([os.fsencode(name) for name in names], pa.large_binary())

    def path(self, index: int) -> str:
        return os.path.join(self.root, os.fsdecode(self._names[index].as_py()))

    def open(self, index: int) -> Image.Image:
        return Image.open(self.path(index))

    def encoded(self, index: int) -> bytes:
        with open(self.path(index), "rb") as file:
            return file.read()

    def describe(self, index: int) -> str:
        return _printable(self.path(index))

    def content(self) -> Iterator[bytes]:
        for index, name in enumerate(self._names):
            path = self.path(index)
            size = os.path.getsize(path) if os.path.exists(path) else -1  # a broken link is an unreadable image
            yield b"%s\0%d\0" % (name.as_py(), size)


def open_folder(root: str, holdout: float) -> ImageSets:
    """Open the class folders of a training split and of one to validate on, or class folders directly under `root`.

    Splits are folders of class folders whose names say so: `train`, `Training`, `seg_train`, `val`, `test_set`, ... A
    test split is validated on where there is no other.

    Raises:
        UserError: there are no class folders or images, a class folder is empty, an image is outside any of them, or
            a class is in one split only.
    """
    root = os.path.abspath(root)
    with clear_errors(root):
        folders = _subfolders(root)
        named = {name: match[1].lower() for name in folders if (match := _SPLIT.fullmatch(name))}
        splits = {name: split for name, split in named.items() if _subfolders(os.path.join(root, name))}
        train = _training(root, folders, named, splits)
        if train is None:
            return hold_out_noted(_open_split(root), holdout, root)
        # A val without class folders will be told so; a test split often has none, as its labels are secret.
        flat = next((name for name in named if name.lower() in _PLAIN["val"]), None)
        val = _only(root, splits, "val") or flat or _only(root, splits, "test")
        opened = _open_split(os.path.join(root, train))
        if val is None:
            return hold_out_noted(opened, holdout, root)
        return ImageSets(opened, _open_split(os.path.join(root, val), opened.classes))


def _training(root: str, folders: Sequence[str], named: Mapping[str, str], splits: Mapping[str, str]) -> str | None:
    """The folder of the training split; None where the folders are those of classes, perhaps called like splits."""
    train = _only(root, splits, "train")
    others = {"val", "test"} & set(splits.values())
    if train and (train.lower() in _PLAIN["train"] or others or len(named) == len(folders)):
        return train
    kinds = set(named.values())
    plain = [name for name, split in splits.items() if split != "train" and name.lower() in _PLAIN[split]]
    told = list(named) if len(named) == len(folders) or ("train" in kinds and len(kinds) > 1) else plain
    if told:
        raise UserError(
            f"{root} has {' and '.join(f'{name}/' for name in told)} but no train/ with class folders: add it, or give "
            "the folder of class folders"
        )
    return None


def _printable(path: str) -> str:
    """A path with what is no UTF-8 in it written out; manifests and terminals take nothing else."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _subfolders(folder: str) -> list[str]:
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))


def _open_split(folder: str, classes: tuple[str, ...] | None = None) -> FolderSet:
    found = _subfolders(folder)
    if not found:
        raise UserError(f"{folder} has no class folders: put the images of each class into a folder with its name")
    for name in found:
        if _printable(name) != name:
            raise UserError(f"class folder {_printable(os.path.join(folder, name))} has no UTF-8 name: rename it")
    names = _image_names(folder)
    members = [name.split(os.sep, 1)[0] for name in names]
    for name, member in zip(names, members, strict=True):
        if name == member:
            raise UserError(
                f"{_printable(os.path.join(folder, name))} is outside any class folder: move it into one, or away"
            )
    for name in found:
        if classes is not None and name not in classes:
            raise UserError(f"class {name!r} is in {folder} but not in the training split: add it there or remove it")
    empty = sorted(set(found) - set(members))
    if empty:
        raise UserError(f"class folder {os.path.join(folder, empty[0])} has no images: add some or remove the folder")
    classes = classes or tuple(found)
    indices = {name: index for index, name in enumerate(classes)}
    return FolderSet(folder, names, np.array([indices[member] for member in members], dtype=np.int64), classes)


def _image_names(folder: str) -> list[str]:
    def refuse(error: OSError) -> None:
        raise error

    names = []
    for place, folders, files in os.walk(folder, onerror=refuse, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            if not name.startswith(".") and name.lower().endswith(EXTENSIONS):
                names.append(os.path.relpath(os.path.join(place, name), folder))
    if not names:
        raise UserError(f"{folder} has no images ({', '.join(EXTENSIONS)}) in its class folders: add some")
    return sorted(names)

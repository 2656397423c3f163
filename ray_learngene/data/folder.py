"""A folder of class folders, with or without train/ and val/ above them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

import ray_learngene.torchvision_cpu  # noqa: F401  isort:skip  (before the first timm import)
import numpy as np
import pyarrow as pa
from PIL import Image
from timm.data.readers import create_reader

from ray_learngene.data.image_set import ImageSet, ImageSets, Labels, hold_out_noted
from ray_learngene.errors import UserError
from ray_learngene.storage_errors import clear_errors

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
_VALIDATION = ("val", "validation", "test")


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
        return self.path(index)

    def content(self) -> Iterator[bytes]:
        for index, name in enumerate(self._names):
            yield b"%s\0%d\0" % (name.as_py(), os.path.getsize(self.path(index)))


def open_folder(root: str, holdout: float) -> ImageSets:
    """Open `root/train` with `root/val`, `validation` or `test`, or class folders directly under `root`.

    Raises:
        UserError: there are no class folders or images, a class folder is empty, an image is outside any of them, or
            a class is in one split only.
    """
    root = os.path.abspath(root)
    with clear_errors(root):
        folders = _subfolders(root)
        validation = next((name for name in _VALIDATION if name in folders), None)
        if "train" not in folders:
            if validation:
                raise UserError(f"{root} has {validation}/ but no train/: add it, or give the folder of class folders")
            return hold_out_noted(_open_split(root), holdout, root)
        train = _open_split(os.path.join(root, "train"))
        if validation is None:
            return hold_out_noted(train, holdout, root)
        return ImageSets(train, _open_split(os.path.join(root, validation), train.classes))


def _subfolders(folder: str) -> list[str]:
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))


def _open_split(folder: str, classes: tuple[str, ...] | None = None) -> FolderSet:
    found = _subfolders(folder)
    if not found:
        raise UserError(f"{folder} has no class folders: put the images of each class into a folder with its name")
    names = _image_names(folder)
    members = [name.split(os.sep, 1)[0] for name in names]
    for name, member in zip(names, members, strict=True):
        if name == member:
            raise UserError(f"{os.path.join(folder, name)} is outside any class folder: move it into one, or away")
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
    try:
        reader = create_reader("", root=folder, input_key=";".join(EXTENSIONS))
    except RuntimeError:
        raise UserError(f"{folder} has no images ({', '.join(EXTENSIONS)}) in its class folders: add some") from None
    names = (path.removeprefix(folder + os.sep) for path, _ in reader.samples)
    # Sorted by code point: timm's order ignores case, and then depends on the order of the directory.
    return sorted(name for name in names if not any(part.startswith(".") for part in name.split(os.sep)))

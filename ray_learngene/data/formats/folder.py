"""A folder of class folders, with or without train/ and val/ above them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image

from ray_learngene.data.class_names import same_name
from ray_learngene.data.formats.files import EXTENSIONS, find_images, is_system, not_read, subfolders
from ray_learngene.data.formats.split_names import PLAIN, split_of, the_one
from ray_learngene.data.image_set import ImageSet, ImageSets, Labels, Report, hold_out_noted, refuse
from ray_learngene.errors import UserError
from ray_learngene.io.errors import clear_errors
from ray_learngene.progress import counted


class FolderSet(ImageSet):
    """Image files by relative name.

    Attributes:
        place: What messages call the folder; that of a local copy is its address.
    """

    def __init__(self, root: str, names: Sequence[str], labels: Labels, classes: tuple[str, ...]) -> None:
        self.root, self.place, self.labels, self.classes = root, root, labels, classes
        # An Arrow array, not a list: a million names stay shared between loader processes.
        self._names = pa.array([os.fsencode(name) for name in names], pa.large_binary())

    def path(self, index: int) -> str:
        return os.path.join(self.root, os.fsdecode(self._names[index].as_py()))

    def open(self, index: int) -> Image.Image:
        return Image.open(self.path(index))

    def encoded(self, index: int) -> bytes:
        return Path(self.path(index)).read_bytes()

    def describe(self, index: int) -> str:
        return _printable(os.path.join(self.place, os.fsdecode(self._names[index].as_py())))

    def describe_inside(self, index: int) -> str:
        return _printable(os.fsdecode(self._names[index].as_py()))

    def content(self) -> Iterator[bytes]:
        for index, name in enumerate(self._names):
            path = self.path(index)
            size = os.path.getsize(path) if os.path.exists(path) else -1  # a broken link is an unreadable image
            yield b"%s\0%d\0" % (name.as_py(), size)


def open_folder(root: str, holdout: float, *, validate: bool = True, report: Report = refuse) -> ImageSets:
    """Open the class folders of a training split and of one to validate on, or class folders directly under `root`.

    Splits are folders of class folders whose names say so: `train`, `Training`, `seg_train`, `val`, `test_set`, ... A
    test split is validated on where there is no other.

    Args:
        validate: False does not read a split to validate on; the training split stands for it.
        report: Is told what is wrong with class folders; what it does not refuse is left out.

    Raises:
        UserError: there are no class folders or images, or, by default, a class folder is empty, an image is outside
            any of them, or a class is in one split only.
    """
    root = os.path.abspath(root)
    with clear_errors(root):
        folders = subfolders(root)
        named = {name: split for name in folders if (split := split_of(name))}
        splits = {name: split for name, split in named.items() if subfolders(os.path.join(root, name))}
        train = _training(root, folders, named, splits)
        if train is None:
            whole, note = _open_split(root, report)
            return hold_out_noted(whole, holdout, root, note)
        # A val without class folders will be told so; a test split often has none, as its labels are secret.
        flat = next((name for name in named if name.lower() in PLAIN["val"]), None)
        opened, note = _open_split(os.path.join(root, train), report)
        val = the_one(root, splits, "val") or flat or the_one(root, splits, "test")
        others = [name for name in folders if name not in (train, val) and named.get(name) != "test"]
        note = "\n".join(filter(None, (note, _no_split(root, others)))) or None
        if val is None:
            return hold_out_noted(opened, holdout, root, note)
        if not validate:
            return ImageSets(opened, opened, note)
        second, more = _open_split(os.path.join(root, val), report, opened.classes)
        return ImageSets(opened, second, "\n".join(filter(None, (note, more))) or None)


UNLABELLED = ("images",)  # the one class of images without classes


def open_any_folder(root: str, holdout: float, *, validate: bool = True) -> ImageSets:
    """Open a folder whose labels are not needed: class folders where there are any, else every image below it.

    Images of a flat folder are split by `train/` and `val/` (or `test/`) where those exist; else some are held out.

    Raises:
        UserError: there are no images.
    """
    problems: list[str] = []
    try:
        sets = open_folder(root, holdout, validate=validate, report=problems.append)
        if not problems:
            return sets
    except UserError as error:
        problems.append(str(error))
    root = os.path.abspath(root)
    with clear_errors(root):
        named = {name: split for name in subfolders(root) if (split := split_of(name))}
        train = the_one(root, named, "train") if "train" in named.values() else None
        val = (the_one(root, named, "val") or the_one(root, named, "test")) if train else None
        whole = _flat(os.path.join(root, train or ""))
        note = f"read without classes, as labels are not needed ({problems[0]})"
        if val is None:
            return hold_out_noted(whole, holdout, root, note)
        return ImageSets(whole, _flat(os.path.join(root, val)) if validate else whole, note)


def _flat(folder: str) -> FolderSet:
    images = find_images(folder).images
    if not images:
        raise UserError(f"{folder} has no images ({', '.join(EXTENSIONS)}): add some")
    return FolderSet(folder, images, np.zeros(len(images), dtype=np.int64), UNLABELLED)


def _training(root: str, folders: Sequence[str], named: Mapping[str, str], splits: Mapping[str, str]) -> str | None:
    """Return the folder of the training split.

    None if the folders are those of classes, perhaps named like splits.
    """
    others = {"val", "test"} & set(splits.values())
    plain = [name for name, split in splits.items() if name.lower() in PLAIN[split]]
    if "train" in splits.values() and (
        others or len(named) == len(folders) or any(splits[name] == "train" for name in plain)
    ):
        return the_one(root, splits, "train")
    kinds = set(named.values())
    # Several folders that tell one and the same split are classes, such as blood_test and eye_test.
    all_named = len(named) == len(folders) and (len(kinds) > 1 or len(named) == 1)
    told = list(named) if all_named or ("train" in kinds and len(kinds) > 1) else plain
    if told:
        raise UserError(
            f"{root} has {' and '.join(f'{name}/' for name in told)} but no train/ with class folders: add it, or give "
            "the folder of class folders"
        )
    return None


def _no_split(root: str, folders: Sequence[str]) -> str | None:
    """Return one line about images next to the splits, in folders or in none; None where there are none."""
    counts = {_printable(name): len(find_images(os.path.join(root, name)).images) for name in folders}
    counts["outside any folder"] = sum(
        name.lower().endswith(EXTENSIONS) for name in os.listdir(root) if not is_system(name)
    )
    found = ", ".join(f"{place} ({counted(count, 'image')})" for place, count in counts.items() if count)
    return f"not read in {_printable(root)}: {found}" if found else None


def _printable(path: str) -> str:
    """Return a path with what is no UTF-8 in it written out; manifests and terminals take nothing else."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _open_split(folder: str, report: Report, classes: tuple[str, ...] | None = None) -> tuple[FolderSet, str | None]:
    """Return the images of a split, and what the user should know about it."""
    found = subfolders(folder)
    if not found:
        raise UserError(f"{folder} has no class folders: put the images of each class into a folder with its name")
    for name in found:
        if _printable(name) != name:
            raise UserError(f"class folder {_printable(os.path.join(folder, name))} has no UTF-8 name: rename it")
    files = find_images(folder)
    note = not_read(files.others, {kind: _printable(name) for kind, name in files.examples.items()}, folder)
    if not files.images:
        reason = f"; {note}" if note else ""
        raise UserError(f"{folder} has no images ({', '.join(EXTENSIONS)}) in its class folders: add some{reason}")
    if not any(name.count(os.sep) < 2 for name in files.images):
        _refuse_level(folder, found)
    known = {same_name(name): index for index, name in enumerate(classes or found)}
    if len(known) < len(classes or found):
        twice = next(name for number, name in enumerate(found) if same_name(name) in map(same_name, found[:number]))
        raise UserError(f"{folder} has two folders {twice!r} whose accents are encoded differently: merge them")
    for name in found:
        if same_name(name) not in known:
            report(f"class {name!r} is in {folder} but not in the training split: add it there or remove it")
    names, labels = [], []
    with_images = set()
    for name in files.images:
        member, inside, _ = name.partition(os.sep)
        if not inside:
            report(f"{_printable(os.path.join(folder, name))} is outside any class folder: move it into one, or away")
            continue
        with_images.add(member)
        if same_name(member) in known:
            names.append(name)
            labels.append(known[same_name(member)])
    for name in sorted(set(found) - with_images) if classes else ():  # `check_splits` names those of the training split
        report(f"class folder {os.path.join(folder, name)} has no images: add some or remove the folder")
    return FolderSet(folder, names, np.array(labels, dtype=np.int64), classes or tuple(found)), note


def _refuse_level(folder: str, found: Sequence[str]) -> None:
    """Refuse class folders that hold only folders: the set is a level below, or has a level too many."""
    inside = os.path.join(folder, found[0])
    inner = subfolders(inside)
    if any(map(split_of, inner)):
        raise UserError(
            f"{folder} is a level too high: its folder {found[0]} has {', '.join(inner[:3])}; give {inside}"
        )
    raise UserError(
        f"the class folders of {folder} hold only folders ({found[0]}/{inner[0] if inner else '...'}): give {inside} "
        "if its folders are the classes, else put the images directly into the class folders"
    )

"""Image sets of torchvision (`torch/NAME`) and of the Hugging Face hub (`hfds/NAME`), opened by timm."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image
from timm.data import create_dataset

from ray_learngene.data.formats.split_names import split_of, the_one
from ray_learngene.data.image_set import ImageSet, ImageSets, Labels, hold_out_noted
from ray_learngene.errors import UserError, reason_of

# Sets small enough to download without being asked; larger ones must be in data_dir already.
_DOWNLOADED = ("cifar10", "cifar100", "mnist", "kmnist", "fashion_mnist", "qmnist")


class TorchvisionSet(ImageSet):
    """A torchvision dataset with `targets`."""

    def __init__(self, name: str, dataset: Any) -> None:
        if not hasattr(dataset, "targets"):
            raise UserError(f"{name} does not list its labels: convert it to a folder of class folders")
        self.name, self.dataset = name, dataset
        targets = np.asarray(dataset.targets, dtype=np.int64)
        self.labels = targets if targets.ndim == 1 else targets[:, 0]  # QMNIST's have seven columns more
        classes = getattr(dataset, "classes", None) or range(int(self.labels.max()) + 1)
        # ImageNet's classes are tuples of synonyms, and two are called "crane".
        names = [each[0] if isinstance(each, tuple) else str(each) for each in classes]
        ids = getattr(dataset, "wnids", None) or range(len(names))
        counts = Counter(names)
        self.classes = tuple(
            name if counts[name] == 1 else f"{name} ({each})" for name, each in zip(names, ids, strict=True)
        )

    def open(self, index: int) -> Image.Image:
        return self.dataset[index][0]

    def describe(self, index: int) -> str:
        return f"{self.name} {index}"

    def content(self) -> Iterator[bytes]:
        yield self.name.encode()


class HubSet(ImageSet):
    """A dataset of the Hugging Face hub behind timm's reader."""

    def __init__(self, name: str, reader: Any, labels: list[Any]) -> None:
        self.name, self.reader = name, reader
        self.labels = _integers(labels, name)
        self.classes = tuple(reader.class_to_idx) or tuple(str(label) for label in range(int(self.labels.max()) + 1))

    def open(self, index: int) -> Image.Image:
        return Image.open(self.reader[index][0])

    def encoded(self, index: int) -> bytes:
        with self.reader[index][0] as file:
            return file.read()

    def describe(self, index: int) -> str:
        return f"{self.name} row {index}"

    def content(self) -> Iterator[bytes]:
        yield f"{self.name} {self.reader.dataset.info.version}".encode()


def open_timm_sets(
    name: str,
    data_dir: str | None,
    *,
    holdout: float = 0.1,
    image_column: str = "image",
    label_column: str = "label",
    validate: bool = True,
) -> ImageSets:
    """Open `torch/NAME` or `hfds/NAME`.

    Args:
        validate: False does not read a split to validate on; the training split stands for it.

    Raises:
        UserError: the name is unknown, a package is missing, or the set can neither be found nor downloaded.
    """
    if name.startswith("torch/"):
        root = os.path.abspath(os.path.expanduser(data_dir or "./data"))  # workers run in other folders
        images = _open_torchvision(name, root, "train")
        return ImageSets(images, _open_torchvision(name, root, "validation") if validate else images)
    columns: dict[str, Any] = {"input_key": image_column, "target_key": label_column}
    reader = _hub_reader(name, data_dir, "train", columns)
    train = HubSet(f"{name} train", reader, list(reader.iter_targets()))
    available = list(getattr(train.reader.dataset.info, "splits", None) or ())
    splits = {each: split for each in available if (split := split_of(each))}
    split = the_one(name, splits, "val") or the_one(name, splits, "test")
    if split is None:
        return hold_out_noted(train, holdout, name)
    if not validate:
        return ImageSets(train, train)
    reader = _hub_reader(name, data_dir, split, columns)
    labels = list(reader.iter_targets())
    if splits[split] == "test" and set(labels) <= {-1, None}:
        return hold_out_noted(train, holdout, name, f"the test split of {name} has no labels: left out")
    return ImageSets(train, HubSet(f"{name} {split}", reader, labels))


def _open_torchvision(name: str, root: str, split: str) -> TorchvisionSet:
    download = name.removeprefix("torch/").lower() in _DOWNLOADED
    try:
        dataset = create_dataset(name, root=root, split=split, download=download)
    except Exception as error:  # each dataset class has its own idea of what to raise
        raise UserError(
            f"{name} cannot be opened or downloaded into {root}: {reason_of(error)}; {_advice(name)}"
        ) from None
    return TorchvisionSet(f"{name} {split}", dataset)


def _advice(name: str) -> str:
    if name == "torch/cifar10":
        return "give --data-dir with the set's binary files (data_batch_1.bin to test_batch.bin)"
    return "check the name, or give --data-dir with the files that torchvision expects"


def _hub_reader(name: str, root: str | None, split: str, columns: dict[str, Any]) -> Any:
    try:
        import datasets  # noqa: F401
    except ImportError:
        raise UserError(f"{name} needs a package that is not installed: pip install datasets") from None
    try:
        dataset = create_dataset(name, root=root, split=split, **columns)
    except Exception as error:  # the hub's client raises its own types for network, name and column
        raise UserError(
            f"{name}: the {split} split cannot be opened: {reason_of(error)}; check name and network"
        ) from None
    return dataset.reader


def _integers(labels: list[Any], name: str) -> Labels:
    for row, label in enumerate(labels):
        if not isinstance(label, int) or label < 0:
            raise UserError(f"{name} row {row}: label {label!r} is not a class index; choose another --label-column")
    return np.array(labels, dtype=np.int64)

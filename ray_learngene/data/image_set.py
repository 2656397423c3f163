"""What every image set offers, the sets that need no files, and the split of a set without a validation part."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
from PIL import Image

from ray_learngene.data.decode import readable, to_rgb
from ray_learngene.errors import UserError

Labels = npt.NDArray[np.int64]
Report = Callable[[str], None]  # is told what is wrong with an image set


def refuse(problem: str) -> None:
    """The report that ends with the first problem."""
    raise UserError(problem)


class ImageSet(ABC):
    """Labelled images in a fixed order; `labels` is `[N]`, class indices."""

    classes: tuple[str, ...]
    labels: Labels

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, index: int) -> Image.Image:
        """Return the image, RGB and upright.

        Raises:
            UserError: it cannot be decoded; names it.
        """
        with readable(lambda: self.describe(index)), self.open(index) as image:
            return to_rgb(image)

    @abstractmethod
    def open(self, index: int) -> Image.Image:
        """Return the image with its header read and, where it is stored encoded, its pixels not decoded yet."""

    def encoded(self, index: int) -> bytes | None:
        """Return the encoded image as it is stored; None where pixels are stored."""
        return None

    @abstractmethod
    def describe(self, index: int) -> str:
        """Return where the image is, for messages: a file name, or a shard and a row."""

    def describe_inside(self, index: int) -> str:
        """Return where the image is inside the set, for artefacts, which say nothing about this machine's folders."""
        return self.describe(index)

    @abstractmethod
    def content(self) -> Iterator[bytes]:
        """Return what tells the images from other images with the same labels, for the fingerprint."""

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of classes, labels and content."""
        digest = hashlib.sha256(json.dumps(self.classes).encode())
        digest.update(self.labels.tobytes())
        for part in self.content():
            digest.update(part)
        return digest.hexdigest()


class ArraySet(ImageSet):
    """Images in memory: uint8 `[N, H, W]` (grey) or `[N, H, W, 3]`."""

    def __init__(self, name: str, pixels: npt.NDArray[np.uint8], labels: Labels, classes: tuple[str, ...]) -> None:
        self.name, self.pixels, self.labels, self.classes = name, pixels, labels, classes

    def open(self, index: int) -> Image.Image:
        return Image.fromarray(self.pixels[index])

    def describe(self, index: int) -> str:
        return f"{self.name} {index}"

    def content(self) -> Iterator[bytes]:
        yield str(self.pixels.shape).encode()
        yield from (image.tobytes() for image in self.pixels)


class Subset(ImageSet):
    """Some images of another set, in the order of `indices`."""

    def __init__(self, whole: ImageSet, indices: Labels) -> None:
        self.whole, self.indices = whole, indices
        self.classes, self.labels = whole.classes, whole.labels[indices]

    def open(self, index: int) -> Image.Image:
        return self.whole.open(int(self.indices[index]))

    def encoded(self, index: int) -> bytes | None:
        return self.whole.encoded(int(self.indices[index]))

    def describe(self, index: int) -> str:
        return self.whole.describe(int(self.indices[index]))

    def describe_inside(self, index: int) -> str:
        return self.whole.describe_inside(int(self.indices[index]))

    def content(self) -> Iterator[bytes]:
        yield self.whole.fingerprint.encode()
        yield self.indices.tobytes()


def relabelled(whole: ImageSet, index: Labels, classes: tuple[str, ...]) -> ImageSet:
    """Return the same images with their classes in another order: `index` is the new one of every class."""
    images = Subset(whole, np.arange(len(whole)))
    images.labels, images.classes = index[whole.labels], classes
    return images


@dataclass(frozen=True)
class ImageSets:
    """Both splits, with the same classes.

    Attributes:
        note: What the user should know about how they came about.
        license: What the set's own card states.
    """

    train: ImageSet
    val: ImageSet
    note: str | None = None
    license: str | None = None


def hold_out(whole: ImageSet, share: float, note: str | None = None) -> ImageSets:
    """Split off a share of every class, evenly spaced over its images in their order.

    A class of one image stays in the training split; of every other class at least one image is held out and one kept.
    """
    held = _spread(whole, share, of_single=0)
    return ImageSets(Subset(whole, np.flatnonzero(~held)), Subset(whole, np.flatnonzero(held)), note)


def share_of(whole: ImageSet, share: float) -> ImageSet:
    """Return a share of every class, evenly spaced over its images in their order; at least one of each."""
    return whole if share == 1 else Subset(whole, np.flatnonzero(_spread(whole, share, of_single=1)))


def _spread(whole: ImageSet, share: float, *, of_single: int) -> npt.NDArray[np.bool_]:
    """Return which images make a share of every class: at least one and not all, and `of_single` of a class of one."""
    taken = np.zeros(len(whole), dtype=bool)
    for label in range(len(whole.classes)):
        members = np.flatnonzero(whole.labels == label)
        most = of_single if len(members) == 1 else len(members) - 1
        count = min(max(1, round(share * len(members))), most)
        if count > 0:
            taken[members[((np.arange(count) + 0.5) * len(members) / count).astype(np.int64)]] = True
    return taken


def hold_out_noted(whole: ImageSet, share: float, where: str, more: str | None = None) -> ImageSets:
    """Call `hold_out` for a set that has no validation split of its own, with a note that says so, and more."""
    note = f"no validation split in {where}: held out {100 * share:g} % per class (by position, the same in every run)"
    return hold_out(whole, share, "\n".join(filter(None, (more, note))))


def check_splits(sets: ImageSets, where: str, *, labelled: bool = True, report: Report = refuse) -> None:
    """Report a class without a training image, fewer than two classes, and nothing to validate on.

    Args:
        labelled: Labels are used; without, one class is enough.
    """
    classes = sets.train.classes
    if labelled and len(classes) < 2:
        report(
            f"{where} has only one class, {classes[0]!r}: give the folder or the label column of all classes, or leave "
            "the labels out of a distillation (--no-labels)"
        )
    trained = np.bincount(sets.train.labels, minlength=len(classes))
    validated = np.bincount(sets.val.labels, minlength=len(classes))
    for name, images, validation_images in zip(classes, trained, validated, strict=True):
        if not images and validation_images:
            report(f"{where}: class {name!r} is in the validation split only; add it to train or remove it")
        elif not images:
            report(f"{where}: class {name!r} has no image; add images, or remove the class and close the gap")
    if not len(sets.val):
        report(f"{where}: the validation split is empty; add images or give classes more than one image")

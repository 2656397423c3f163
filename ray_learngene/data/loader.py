"""Loaders: from an image set to batches of tensors, augmented by (seed, epoch, index, repeat) alone.

Whatever is random is drawn where images are decoded; the arithmetic on whole batches is the device's (`Finish`).
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader, Dataset

from ray_learngene.config import AugmentationConfig
from ray_learngene.config.image import ImageShape
from ray_learngene.data.batch import Batch, Finish, PixelBatch
from ray_learngene.data.image_set import ImageSet
from ray_learngene.data.mixing import Erasing, Mix, Mixing, Patch
from ray_learngene.data.reader import Reader
from ray_learngene.data.sampler import Sample, WorkerBatches
from ray_learngene.data.transforms import Transform, eval_transform, train_transform
from ray_learngene.errors import UserError
from ray_learngene.models.preprocessing import Preprocessing

_MIXING = 1  # keeps the random numbers of mixing apart from those of augmentation


def train_loader(
    image_set: ImageSet,
    image_size: ImageShape | int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    augmentation: AugmentationConfig,
    *,
    seed: int,
    batch_size: int,
    rank: int = 0,
    world_size: int = 1,
    accumulation: int = 1,
    epochs: int,
    start_step: int = 0,
    workers: int = 0,
    soft_targets: bool = False,
    view_epochs: int = 0,
    finish_in_loader: bool = False,
    reader: Reader | None = None,
    device: torch.device | None = None,
) -> DataLoader[Batch]:
    """Return the micro-batches of one worker from `start_step` to the end of the last epoch, in one pass.

    Yields normalised images `[B, C, H, W]` and targets: class indices `[B]`, or, with mixup or cutmix, smoothed
    probabilities `[B, classes]`.

    Args:
        image_size: Shape of the images; a number for square RGB images.
        batch_size: Of all workers and micro-batches together.
        workers: Loader processes; 0 loads in this one.
        soft_targets: Probabilities also where nothing is mixed.
        view_epochs: Order and augmentation repeat after so many epochs; 0: never.
        finish_in_loader: Loader processes finish the batches; the numbers are the same.
        reader: Reads the set; default: one that fails at what it cannot read.
        device: Where the batches are put and finished; default: the one this process computes on.

    Raises:
        UserError: the batch is larger than the set, odd where pairs are mixed, or too small for its micro-batches; or
            timm does not know the auto-augment policy.
    """
    mixing = augmentation.mixup > 0 or augmentation.cutmix > 0
    if mixing and batch_size % 2:
        raise UserError(
            f"mixup and cutmix mix pairs, but --batch-size {batch_size} is odd: choose an even one, or switch them off"
        )
    batches = WorkerBatches(
        len(image_set),
        batch_size,
        rank=rank,
        world_size=world_size,
        accumulation=accumulation,
        seed=seed,
        epochs=epochs,
        repeats=augmentation.repeats,
        start_step=start_step,
        view_epochs=view_epochs,
        unit=2 if mixing else 1,
    )
    image = ImageShape.of(image_size)
    transform = train_transform(image, mean, augmentation)
    finish = partial(
        Finish, mean, std, classes=len(image_set.classes), smoothing=augmentation.smoothing, soft=soft_targets
    )
    finish_early = finish(device=torch.device("cpu")) if finish_in_loader else None
    return _ImageLoader(
        _Augmented(reader or Reader(image_set), transform, augmentation, image, seed),
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=_Collate(Mixing(augmentation, image) if mixing else None, seed, finish_early),
        finish=finish(device=device),
    )


def eval_loader(
    image_set: ImageSet,
    preprocessing: Preprocessing,
    batch_size: int,
    *,
    workers: int = 0,
    rank: int = 0,
    world_size: int = 1,
    reader: Reader | None = None,
    crop_mode: str = "center",
) -> DataLoader[Batch]:
    """Return every `world_size`-th image from `rank` on, in order, resized and cropped, with class indices `[B]`.

    Args:
        batch_size: Of this worker; the last batch, and one with unreadable images, may be smaller.
        reader: Reads the set; default: one that fails at what it cannot read.
        crop_mode: timm's: center, squash or border.
    """
    return _ImageLoader(
        _Plain(reader or Reader(image_set), eval_transform(preprocessing, crop_mode)),
        batch_size=min(batch_size, max(1, len(image_set))),
        sampler=range(rank, len(image_set), world_size),
        num_workers=workers,
        collate_fn=_collate_readable,
        finish=Finish(preprocessing.mean, preprocessing.std),
    )


@contextmanager
def _generators_kept() -> Iterator[None]:
    """Put Python's, NumPy's and torch's CPU generator back afterwards; once per batch, as NumPy's is slow to copy."""
    states = random.getstate(), np.random.get_state(), torch.default_generator.get_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.default_generator.set_state(states[2])


def _seed_generators(*key: int, numpy: bool = True) -> None:
    """Seed the random generators from the key, except NumPy's, from which nothing is sampled."""
    words = np.random.SeedSequence(key).generate_state(4)
    random.seed(words.tobytes())
    if numpy:
        np.random.seed(words)
    torch.default_generator.manual_seed(int(words[0]))


class _View(NamedTuple):
    """One augmented image."""

    pixels: npt.NDArray[np.uint8]
    label: int
    erased: list[Patch]
    sample: Sample


class _Augmented(Dataset[_View]):
    def __init__(
        self, reader: Reader, transform: Transform, augmentation: AugmentationConfig, image: ImageShape, seed: int
    ) -> None:
        self.reader, self.transform, self.seed = reader, transform, seed
        self.erasing = Erasing(augmentation.reprob, image)
        self.numpy = augmentation.auto_augment is not None  # nothing else here draws from NumPy's generator

    def __getitem__(self, sample: Sample) -> _View:
        return self.__getitems__([sample])[0]

    def __getitems__(self, samples: list[Sample]) -> list[_View]:
        with _generators_kept():
            return [self._augmented(sample) for sample in samples]

    def _augmented(self, sample: Sample) -> _View:
        image, label = self.reader.image_or_next(sample.index)
        _seed_generators(self.seed, *sample, numpy=self.numpy)
        return _View(self.transform(image), label, self.erasing.draw(), sample)


class _Plain(Dataset[tuple[npt.NDArray[np.uint8], int] | None]):
    def __init__(self, reader: Reader, transform: Transform) -> None:
        self.reader, self.transform = reader, transform

    def __getitem__(self, index: int) -> tuple[npt.NDArray[np.uint8], int] | None:
        found = self.reader.image(index)
        return found and (self.transform(found[0]), found[1])


def _collate_readable(items: list[tuple[npt.NDArray[np.uint8], int] | None]) -> PixelBatch | None:
    """Return a batch of what could be read; None where that is nothing."""
    found = [item for item in items if item is not None]
    return PixelBatch.of([pixels for pixels, _ in found], [label for _, label in found]) if found else None


class _Collate:
    """Put a micro-batch together, and draw how its pairs (0, 1), (2, 3), … are mixed.

    Pairs, unlike whole micro-batches, are the same for every number of workers.
    """

    def __init__(self, mixing: Mixing | None, seed: int, finish: Finish | None = None) -> None:
        self.mixing, self.seed, self.finish = mixing, seed, finish

    def __call__(self, views: list[_View]) -> PixelBatch | Batch:
        mixes = None
        if self.mixing is not None:
            with _generators_kept():
                mixes = [self._drawn(self.mixing, views[first].sample) for first in range(0, len(views), 2)]
        batch = PixelBatch.of(
            [view.pixels for view in views], [view.label for view in views], [view.erased for view in views], mixes
        )
        return self.finish(batch) if self.finish else batch

    def _drawn(self, mixing: Mixing, first: Sample) -> Mix:
        _seed_generators(self.seed, *first, _MIXING)
        return mixing.draw()


def _leave_group(worker: int) -> None:
    """Let no Ctrl-C and no SIGTERM to the group end this process: images are read until the checkpoint is written."""
    if hasattr(os, "setpgid"):
        os.setpgid(0, 0)


class _ImageLoader(DataLoader[Any]):
    """Finished batches, none of them empty; a UserError of its processes comes back as the one line it was."""

    def __init__(self, dataset: Dataset[Any], *, finish: Finish, **options: Any) -> None:
        options["pin_memory"] = finish.pins
        options["generator"] = torch.Generator()  # else every pass would draw from the global one
        super().__init__(dataset, worker_init_fn=_leave_group, **options)
        self.finish = finish

    def __iter__(self) -> Any:
        try:
            yield from (self.finish(batch) for batch in super().__iter__() if batch is not None)
        except UserError as error:
            raise UserError(str(error).strip().splitlines()[-1].partition("UserError: ")[2] or str(error)) from None

"""Loaders: from an image set to batches of tensors, augmented by (seed, epoch, index, repeat) alone."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray_learngene.torchvision_cpu  # noqa: F401  isort:skip  (before the first timm import)
import numpy as np
import torch
from timm.data import Mixup
from timm.data.mixup import mixup_target
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ray_learngene.config import AugmentationConfig
from ray_learngene.data.image_set import ImageSet
from ray_learngene.data.order import Sample, WorkerBatches
from ray_learngene.data.transforms import Transform, eval_transform, train_transform
from ray_learngene.data.unreadable import Reader
from ray_learngene.errors import UserError

Batch = tuple[Tensor, Tensor]
_MIXING = 1  # keeps the random numbers of mixing apart from those of augmentation


def train_loader(
    image_set: ImageSet,
    image_size: int,
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
    reader: Reader | None = None,
) -> DataLoader[Batch]:
    """The micro-batches of one worker from `start_step` to the end of the last epoch, in one pass.

    Yields normalised images `[B, 3, image_size, image_size]` and targets: class indices `[B]`, or, with mixup or
    cutmix, smoothed probabilities `[B, classes]`.

    Args:
        batch_size: Of all workers and micro-batches together.
        workers: Loader processes; 0 loads in this one.
        soft_targets: Probabilities also where nothing is mixed.
        view_epochs: Order and augmentation repeat after so many epochs; 0: never.
        reader: Reads the set; default: one that fails at what it cannot read.

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
    transform = train_transform(image_size, mean, std, augmentation)
    return _ImageLoader(
        _Augmented(reader or Reader(image_set), transform, seed),
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=_Collate(augmentation, len(image_set.classes), seed, mixing, soft_targets),
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # else every pass would draw from the global generator
    )


def eval_loader(
    image_set: ImageSet,
    image_size: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    augmentation: AugmentationConfig,
    batch_size: int,
    workers: int = 0,
    rank: int = 0,
    world_size: int = 1,
    reader: Reader | None = None,
) -> DataLoader[Batch]:
    """Every `world_size`-th image from `rank` on, in order, resized and centre-cropped, with class indices `[B]`.

    Args:
        batch_size: Of this worker; the last batch, and one with unreadable images, may be smaller.
        reader: Reads the set; default: one that fails at what it cannot read.
    """
    transform = eval_transform(image_size, mean, std, augmentation)
    return _ImageLoader(
        _Plain(reader or Reader(image_set), transform),
        batch_size=batch_size,
        sampler=range(rank, len(image_set), world_size),
        num_workers=workers,
        collate_fn=_collate_readable,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),
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


def _seed_generators(*key: int) -> None:
    words = np.random.SeedSequence(key).generate_state(4)
    random.seed(words.tobytes())
    np.random.seed(words)
    torch.default_generator.manual_seed(int(words[0]))


class _Augmented(Dataset[tuple[Tensor, int, Sample]]):
    def __init__(self, reader: Reader, transform: Transform, seed: int) -> None:
        self.reader, self.transform, self.seed = reader, transform, seed

    def __getitem__(self, sample: Sample) -> tuple[Tensor, int, Sample]:
        return self.__getitems__([sample])[0]

    def __getitems__(self, samples: list[Sample]) -> list[tuple[Tensor, int, Sample]]:
        with _generators_kept():
            return [self._augmented(sample) for sample in samples]

    def _augmented(self, sample: Sample) -> tuple[Tensor, int, Sample]:
        image, label = self.reader.image_or_next(sample.index)
        _seed_generators(self.seed, *sample)
        return self.transform(image), label, sample


class _Plain(Dataset[tuple[Tensor, int] | None]):
    def __init__(self, reader: Reader, transform: Transform) -> None:
        self.reader, self.transform = reader, transform

    def __getitem__(self, index: int) -> tuple[Tensor, int] | None:
        found = self.reader.image(index)
        return found and (self.transform(found[0]), found[1])


def _collate_readable(items: list[tuple[Tensor, int] | None]) -> Batch | None:
    """A batch of what could be read; None where that is nothing."""
    found = [item for item in items if item is not None]
    return (torch.stack([image for image, _ in found]), torch.tensor([label for _, label in found])) if found else None


class _Collate:
    """Stack a micro-batch and mix its pairs (0, 1), (2, 3), …

    Pairs, unlike whole micro-batches, are the same for every number of workers.
    """

    def __init__(self, augmentation: AugmentationConfig, classes: int, seed: int, mixing: bool, soft: bool) -> None:
        self.classes, self.seed, self.mixing, self.soft = classes, seed, mixing, soft
        self.smoothing = augmentation.smoothing
        self.mixup = Mixup(
            mixup_alpha=augmentation.mixup,
            cutmix_alpha=augmentation.cutmix,
            prob=augmentation.mixup_prob,
            switch_prob=augmentation.mixup_switch_prob,
            label_smoothing=augmentation.smoothing,
            num_classes=classes,
        )

    def __call__(self, items: list[tuple[Tensor, int, Sample]]) -> Batch:
        images = torch.stack([image for image, _, _ in items])
        targets = torch.tensor([label for _, label, _ in items])
        if not self.mixing:
            return images, mixup_target(targets, self.classes, smoothing=self.smoothing) if self.soft else targets
        mixed = []
        with _generators_kept():
            for first in range(0, len(items), 2):
                pair = slice(first, first + 2)
                _seed_generators(self.seed, *items[first][2], _MIXING)
                images[pair], pair_targets = self.mixup(images[pair], targets[pair])
                mixed.append(pair_targets)
        return images, torch.cat(mixed)


class _ImageLoader(DataLoader[Any]):
    """A DataLoader without empty batches, from whose processes a UserError comes back as the one line it was."""

    def __iter__(self) -> Any:
        try:
            yield from (batch for batch in super().__iter__() if batch is not None)
        except UserError as error:
            raise UserError(str(error).strip().splitlines()[-1].partition("UserError: ")[2] or str(error)) from None

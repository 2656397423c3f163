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
) -> DataLoader[Batch]:
    """The micro-batches of one worker from `start_step` to the end of the last epoch, in one pass.

    Yields normalised images `[B, 3, image_size, image_size]` and targets: class indices `[B]`, or, with mixup or
    cutmix, smoothed probabilities `[B, classes]`.

    Args:
        batch_size: Of all workers and micro-batches together.
        workers: Loader processes; 0 loads in this one.
        soft_targets: Probabilities also where nothing is mixed.
        view_epochs: Order and augmentation repeat after so many epochs; 0: never.

    Raises:
        UserError: the batch does not divide, is larger than the set, or (mixing) leaves an odd micro-batch; or timm
            does not know the auto-augment policy.
    """
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
    )
    mixing = augmentation.mixup > 0 or augmentation.cutmix > 0
    if mixing and batches.micro_batch_size % 2:
        raise UserError(
            f"mixup and cutmix mix pairs, but --batch-size {batch_size} leaves micro-batches of "
            f"{batches.micro_batch_size}: choose one that leaves an even number, or switch them off"
        )
    transform = train_transform(image_size, mean, std, augmentation)
    return _ImageLoader(
        _Augmented(image_set, transform, seed),
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
) -> DataLoader[Batch]:
    """Every `world_size`-th image from `rank` on, in order, resized and centre-cropped, with class indices `[B]`.

    Args:
        batch_size: Of this worker; the last batch may be smaller.
    """
    transform = eval_transform(image_size, mean, std, augmentation)
    return _ImageLoader(
        _Plain(image_set, transform),
        batch_size=batch_size,
        sampler=range(rank, len(image_set), world_size),
        num_workers=workers,
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
    def __init__(self, image_set: ImageSet, transform: Transform, seed: int) -> None:
        self.image_set, self.transform, self.seed = image_set, transform, seed

    def __getitem__(self, sample: Sample) -> tuple[Tensor, int, Sample]:
        return self.__getitems__([sample])[0]

    def __getitems__(self, samples: list[Sample]) -> list[tuple[Tensor, int, Sample]]:
        with _generators_kept():
            return [self._augmented(sample) for sample in samples]

    def _augmented(self, sample: Sample) -> tuple[Tensor, int, Sample]:
        image = self.image_set.image(sample.index)
        _seed_generators(self.seed, *sample)
        return self.transform(image), int(self.image_set.labels[sample.index]), sample


class _Plain(Dataset[tuple[Tensor, int]]):
    def __init__(self, image_set: ImageSet, transform: Transform) -> None:
        self.image_set, self.transform = image_set, transform

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(self.image_set.image(index)), int(self.image_set.labels[index])


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
    """A DataLoader from whose processes a UserError comes back as the one line it was."""

    def __iter__(self) -> Any:
        try:
            yield from super().__iter__()
        except UserError as error:
            raise UserError(str(error).strip().splitlines()[-1].partition("UserError: ")[2] or str(error)) from None

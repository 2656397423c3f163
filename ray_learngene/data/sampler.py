"""Data order as a function of (seed, epoch) alone: the same for every number of workers and after every restart."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from torch.utils.data import Sampler

from ray_learngene.data.image_set import Labels
from ray_learngene.errors import UserError
from ray_learngene.progress import counted


class Sample(NamedTuple):
    """One view of one image: with the seed it decides the augmentation."""

    epoch: int
    index: int  # type: ignore[assignment]  # the field hides tuple.index, which is not needed
    repeat: int


def global_batches(size: int, batch_size: int, seed: int, epoch: int, repeats: int = 1) -> tuple[Labels, Labels]:
    """Return the batches of one epoch over all workers; images that do not fill a batch are dropped.

    With `repeats` every image comes that many times in a row, in a random order of images. The epoch still has `size`
    views, as in timm's `RepeatAugSampler`. Within a batch first views come before second ones, so that two views of an
    image are not neighbours.

    Returns:
        Image index and number of the view, both `[steps, batch_size]`.

    Raises:
        UserError: there are fewer images than a batch.
    """
    _require_batch(size, batch_size)
    steps = size // batch_size
    generator = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, epoch])))
    views = np.arange(steps * batch_size)
    index = generator.permutation(size)[views // repeats].reshape(steps, batch_size)
    repeat = (views % repeats).reshape(steps, batch_size)
    order = np.argsort(repeat, axis=1, kind="stable")
    return np.take_along_axis(index, order, axis=1), np.take_along_axis(repeat, order, axis=1)


def _require_batch(size: int, batch_size: int) -> None:
    if size < batch_size:
        raise UserError(
            f"the training set has {counted(size, 'image')}, less than one batch of {batch_size}: lower --batch-size"
        )


class WorkerBatches(Sampler[list[Sample]]):
    """The micro-batches of one worker from `start_step` to the end of the last epoch.

    A global batch is cut into contiguous micro-batches, `accumulation` of them for each worker in turn. Where it does
    not divide, some are one unit larger.

    Args:
        unit: Images that must stay together: 2 where pairs are mixed.
        view_epochs: Order and augmentation repeat after so many epochs; 0: never.

    Raises:
        UserError: the set is smaller than a batch, or a batch has less than a unit for every micro-batch.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        *,
        rank: int = 0,
        world_size: int = 1,
        accumulation: int = 1,
        seed: int,
        epochs: int,
        repeats: int = 1,
        start_step: int = 0,
        unit: int = 1,
        view_epochs: int = 0,
    ) -> None:
        _require_batch(size, batch_size)
        micro_batches = world_size * accumulation
        if batch_size < unit * micro_batches:
            raise UserError(
                f"--batch-size {batch_size} is less than {'a pair' if unit == 2 else 'an image'} for each of "
                f"{counted(world_size, 'worker')} with {counted(accumulation, 'micro-batch')} each: "
                f"choose {unit * micro_batches} or more"
            )
        self.size, self.batch_size, self.seed, self.repeats = size, batch_size, seed, repeats
        self.rank, self.world_size, self.accumulation = rank, world_size, accumulation
        self.epochs, self.start_step, self.view_epochs = epochs, start_step, view_epochs
        self.bounds = unit * (np.arange(micro_batches + 1) * (batch_size // unit) // micro_batches)
        self.steps_per_epoch = size // batch_size
        self.total_steps = epochs * self.steps_per_epoch

    def view_epoch(self, epoch: int) -> int:
        """Return the epoch whose order and augmentation an epoch has."""
        return epoch % self.view_epochs if self.view_epochs else epoch

    def __len__(self) -> int:
        return max(0, self.total_steps - self.start_step) * self.accumulation

    def __iter__(self) -> Iterator[list[Sample]]:
        first_epoch, first_step = divmod(self.start_step, self.steps_per_epoch)
        for number in range(first_epoch, self.epochs):
            epoch = self.view_epoch(number)
            batches = global_batches(self.size, self.batch_size, self.seed, epoch, self.repeats)
            first = self.rank * self.accumulation
            for step in range(first_step if number == first_epoch else 0, self.steps_per_epoch):
                indices, repeats = (each[step].tolist() for each in batches)
                for start, end in pairwise(self.bounds[first : first + self.accumulation + 1]):
                    yield [Sample(epoch, *view) for view in zip(indices[start:end], repeats[start:end], strict=True)]

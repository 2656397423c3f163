"""The ancestry model's answer beside every micro-batch: asked, or read from the cache and kept there."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ray_learngene.ancestry.cache import SoftLabelCache, Views, facts_of, precision_of
from ray_learngene.ancestry.model import Ancestry
from ray_learngene.config import DistillationConfig, OptimizationConfig
from ray_learngene.data.pipeline import ImagePipeline
from ray_learngene.data.sampler import WorkerBatches
from ray_learngene.store.store import Store
from ray_learngene.training.soft_labels import SoftLabels, joined

# Batches whose answers leave the device together: the host waits for each move, and an epoch's would fill the device.
_TOGETHER = 64

TaughtBatch = tuple[Tensor, Tensor, SoftLabels]


class Answers:
    """What one worker's student is taught.

    It learns from what is kept, also where the ancestry model has just been asked: a run gives the same weights whether
    an epoch was in the cache or not, and wherever it was interrupted. An epoch that this process did not see from its
    start is not kept; whoever needs it next computes it.

    Attributes:
        read: Images so far whose answer came from the cache.
    """

    def __init__(
        self,
        cache: SoftLabelCache,
        device: torch.device,
        autocast: torch.dtype | None,
        *,
        compiled: bool = False,
        overwrite: bool = False,
    ) -> None:
        self.cache, self.device, self.autocast = cache, device, autocast
        self.compiled, self.overwrite = compiled, overwrite
        self.read = 0

    @classmethod
    def create(
        cls,
        config: OptimizationConfig,
        teaching: DistillationConfig,
        images: ImagePipeline,
        ancestry: Ancestry,
        store: Store,
        device: torch.device,
        autocast: torch.dtype | None,
        overwrite: bool = False,
    ) -> Answers:
        """Answers for the training that these settings describe.

        Args:
            overwrite: Compute also what is there, and replace it.
        """
        facts = facts_of(config, teaching, images, ancestry, precision_of(autocast))
        cache = SoftLabelCache(store, facts, ancestry)
        return cls(cache, device, autocast, compiled=config.compile, overwrite=overwrite)

    def beside(self, loader: DataLoader[Any]) -> Iterator[TaughtBatch]:
        """The loader's micro-batches with their soft labels."""
        batches = loader.batch_sampler
        assert isinstance(batches, WorkerBatches)
        views, stream = _numbered(batches), iter(loader)
        per_epoch = batches.steps_per_epoch * batches.accumulation
        first_epoch, first_step = divmod(batches.start_step, batches.steps_per_epoch)
        for epoch in range(first_epoch, batches.epochs):
            skipped = first_step * batches.accumulation if epoch == first_epoch else 0
            numbers = list(islice(views, per_epoch - skipped))
            yield from self._epoch(stream, batches, batches.view_epoch(epoch), numbers, whole=not skipped)

    def _epoch(
        self, stream: Iterator[Any], batches: WorkerBatches, epoch: int, numbers: list[Views], whole: bool
    ) -> Iterator[TaughtBatch]:
        total = batches.steps_per_epoch * batches.batch_size
        kept = None if self.overwrite else self.cache.read(epoch, total, np.concatenate(numbers))
        if kept is not None:
            first = 0
            for each in numbers:
                images, targets = next(stream)
                self.read += len(each)
                yield images, targets, kept[first : first + len(each)]
                first += len(each)
            return
        ancestry = self.cache.ancestry.ready(self.device, compiled=self.compiled, autocast=self.autocast)
        asked: list[SoftLabels] = []
        joins: list[SoftLabels] = []
        for index, _ in enumerate(numbers):
            images, targets = next(stream)
            images = images.to(self.device, non_blocking=True)
            labels = SoftLabels.of(_ask(ancestry, images, self.autocast), self.cache.k, self.cache.dtype)
            last = index == len(numbers) - 1
            if whole:
                asked.append(labels)
                if last or len(asked) == _TOGETHER:
                    joins.append(joined(asked).to(torch.device("cpu")))
                    asked.clear()
            if whole and last:  # before the last step, so that no checkpoint comes between
                part = batches.rank, batches.world_size
                self.cache.write(epoch, total, part, np.concatenate(numbers), joined(joins), self.overwrite)
            yield images, targets, labels


class LiveAnswers:
    """The ancestry model's whole answer beside every micro-batch, asked of it and not kept."""

    def __init__(
        self, ancestry: Ancestry, device: torch.device, autocast: torch.dtype | None, *, compiled: bool
    ) -> None:
        self.ancestry = ancestry.ready(device, compiled=compiled, autocast=autocast)
        self.device, self.autocast = device, autocast

    def beside(self, loader: DataLoader[Any]) -> Iterator[TaughtBatch]:
        """The loader's micro-batches with their soft labels."""
        for images, targets in loader:
            images = images.to(self.device, non_blocking=True)
            logits = _ask(self.ancestry, images, self.autocast)
            yield images, targets, SoftLabels.of(logits, logits.shape[-1], "float32")


@torch.no_grad()
def _ask(ancestry: Ancestry, images: Tensor, autocast: torch.dtype | None) -> Tensor:
    with torch.autocast(images.device.type, autocast, enabled=autocast is not None):
        return ancestry(images)


def _numbered(batches: WorkerBatches) -> Iterator[Views]:
    """The numbers of the views in every micro-batch: by image and repeat, whatever the order and the workers."""
    for samples in batches:
        yield np.array([sample.index * batches.repeats + sample.repeat for sample in samples], dtype=np.int64)

"""The ancestry model's logits for every micro-batch: from a teacher forward pass or from the cache."""

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
from ray_learngene.training.objectives import teacher_logits
from ray_learngene.training.soft_labels import SoftLabels, joined

# Batches whose soft labels leave the device together: the host waits for each copy, an epoch would fill the device.
_TOGETHER = 64

TaughtBatch = tuple[Tensor, Tensor, SoftLabels]


class Answers:
    """The cached soft labels for one rank's student.

    The student always learns from soft labels in their cached form, even right after a teacher forward pass. A run
    therefore ends with the same weights whether epochs were cached or not, and wherever it was interrupted. An epoch
    that this process has not seen from its start is not cached; the next run that needs it computes it.

    Args:
        overwrite: Compute cached epochs again and replace them.
    """

    def __init__(
        self,
        config: OptimizationConfig,
        teaching: DistillationConfig,
        images: ImagePipeline,
        ancestry: Ancestry,
        store: Store,
        device: torch.device,
        autocast: torch.dtype | None,
        overwrite: bool = False,
    ) -> None:
        facts = facts_of(config, teaching, images, ancestry, precision_of(autocast))
        self.cache = SoftLabelCache(store, facts, ancestry)
        self.device, self.autocast, self.compiled, self.overwrite = device, autocast, config.compile, overwrite

    def added_to(self, loader: DataLoader[Any]) -> Iterator[TaughtBatch]:
        """Yield the loader's micro-batches with their soft labels."""
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
        cached = None if self.overwrite else self.cache.read(epoch, total, np.concatenate(numbers))
        if cached is not None:
            first = 0
            for each in numbers:
                images, targets = next(stream)
                yield images, targets, cached[first : first + len(each)]
                first += len(each)
            return
        ancestry = self.cache.ancestry.ready(self.device, compiled=self.compiled, autocast=self.autocast)
        on_device: list[SoftLabels] = []
        on_host: list[SoftLabels] = []
        for index, _ in enumerate(numbers):
            images, targets = next(stream)
            images = images.to(self.device, non_blocking=True)
            labels = SoftLabels.of(teacher_logits(ancestry, images, self.autocast), self.cache.k, self.cache.dtype)
            last = index == len(numbers) - 1
            if whole:
                on_device.append(labels)
                if last or len(on_device) == _TOGETHER:
                    on_host.append(joined(on_device).to(torch.device("cpu")))
                    on_device.clear()
            if whole and last:  # before the last step, so that no checkpoint comes in between
                part = batches.rank, batches.world_size
                self.cache.write(epoch, total, part, np.concatenate(numbers), joined(on_host), self.overwrite)
            yield images, targets, labels


class LiveAnswers:
    """The ancestry model's full logits for every micro-batch, from a teacher forward pass, not cached."""

    def __init__(
        self, ancestry: Ancestry, device: torch.device, autocast: torch.dtype | None, *, compiled: bool
    ) -> None:
        self.ancestry = ancestry.ready(device, compiled=compiled, autocast=autocast)
        self.device, self.autocast = device, autocast

    def added_to(self, loader: DataLoader[Any]) -> Iterator[TaughtBatch]:
        """Yield the loader's micro-batches with their soft labels."""
        for images, targets in loader:
            images = images.to(self.device, non_blocking=True)
            logits = teacher_logits(self.ancestry, images, self.autocast)
            yield images, targets, SoftLabels.of(logits, logits.shape[-1], "float32")


def _numbered(batches: WorkerBatches) -> Iterator[Views]:
    """Yield the view numbers of every micro-batch: by image and repeat, independent of the order and of the ranks."""
    for samples in batches:
        yield np.array([sample.index * batches.repeats + sample.repeat for sample in samples], dtype=np.int64)

"""Scores of a feature model: the loss, and where labels exist two classifiers on its frozen vectors.

`knn` is the top-1 of the 20 nearest training images by cosine similarity, weighted by exp(similarity / 0.07), as DINO
measures. `linear` is that of a linear classifier by ridge regression on standardised vectors, in closed form. Both are
trained on images of the training split as evaluation sees them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ray_learngene.data.image_set import ImageSet, Subset
from ray_learngene.training.features import OWN, FeatureObjective
from ray_learngene.training.step import Batch

NEIGHBOURS, TEMPERATURE, RIDGE = 20, 0.07, 0.1
BANK_IMAGES = 2048  # training images, evenly spaced over the split


def bank_of(images: ImageSet) -> ImageSet:
    """Choose the training images that classifiers are fitted to."""
    count = min(BANK_IMAGES, len(images))
    return Subset(images, np.arange(count) * len(images) // count)


def vectors_of(read: Callable[[Tensor], Tensor], batches: Iterable[Batch]) -> tuple[Tensor, Tensor]:
    """Read the vectors `[N, C]` of images, and their labels `[N]`, to the CPU."""
    vectors, labels = [], []
    for batch in batches:
        vectors.append(read(batch[0]).float().cpu())
        labels.append(batch[1].cpu())
    return torch.cat(vectors), torch.cat(labels)


class Probes:
    """Both classifiers, made of the vectors `[N, C]` and labels `[N]` of training images."""

    def __init__(self, vectors: Tensor, labels: Tensor, classes: int) -> None:
        self.labels, self.classes = labels, classes
        self.bank = F.normalize(vectors, dim=-1)
        wide = vectors.double()
        self.mean, self.scale = wide.mean(dim=0), wide.std(dim=0, correction=0).clamp(min=1e-6)
        inputs, targets = self._standardised(vectors), F.one_hot(labels, classes).double()
        gram = inputs.T @ inputs / len(inputs) + RIDGE * torch.eye(inputs.shape[1], dtype=inputs.dtype)
        self.weight = torch.linalg.solve(gram, inputs.T @ (targets - targets.mean(dim=0)) / len(inputs))
        self.bias = targets.mean(dim=0)

    def knn(self, vectors: Tensor) -> Tensor:
        """Return the classes `[B]` that the nearest images vote for."""
        similarity = F.normalize(vectors, dim=-1) @ self.bank.T
        values, nearest = similarity.topk(min(NEIGHBOURS, len(self.bank)), dim=-1)
        votes = torch.zeros(len(vectors), self.classes, dtype=values.dtype)
        return votes.scatter_add_(1, self.labels[nearest], (values / TEMPERATURE).exp()).argmax(dim=-1)

    def linear(self, vectors: Tensor) -> Tensor:
        """Return the classes `[B]` of the linear classifier."""
        return (self._standardised(vectors) @ self.weight + self.bias).argmax(dim=-1)

    def _standardised(self, vectors: Tensor) -> Tensor:
        return (vectors.double() - self.mean) / self.scale


class FeatureScorer:
    """Scores a `FeatureStudent` on the validation split.

    Args:
        bank: Batches of labelled training images, read at every evaluation; None without labels.
        classes: Number of classes.
    """

    width = 5  # loss, images, and images with labels that are right by either classifier, and their number

    def __init__(
        self,
        objective: FeatureObjective,
        device: torch.device,
        autocast: torch.dtype | None,
        bank: Iterable[Batch] | None,
        classes: int,
    ) -> None:
        self.objective, self.device, self.autocast = objective, device, autocast
        self.bank, self.classes = bank, classes
        self._probes: dict[int, Probes] = {}

    def begin(self, models: Iterable[nn.Module]) -> None:
        """Make the classifiers of models in evaluation mode."""
        self._probes = {}
        for model in models if self.bank is not None else ():
            assert self.bank is not None
            vectors, labels = vectors_of(partial(self._vectors, model), self.bank)
            self._probes[id(model)] = Probes(vectors, labels, self.classes)

    @torch.no_grad()
    def score(self, model: nn.Module, batch: Batch) -> Tensor:
        """Score one batch; return summands, float64 `[5]` on the device."""
        images, labels = batch[0].to(self.device, non_blocking=True), batch[1].cpu()
        features = self._features(model, images)
        own = features.pop(OWN).float().cpu()
        loss = self.objective.loss(features, self.objective.taught(images))["loss"]
        row = [loss.item() * len(images), len(images), 0, 0, 0]
        if (probes := self._probes.get(id(model))) is not None:
            right = [(classify(own) == labels).sum().item() for classify in (probes.knn, probes.linear)]
            row[2:] = [*right, len(labels)]
        return torch.tensor(row, dtype=torch.float64, device=self.device)

    def metrics(self, row: list[float]) -> dict[str, float]:
        """Turn sums into metrics."""
        loss, images, knn, linear, labelled = row
        scores = {"knn": 100 * knn / labelled, "linear": 100 * linear / labelled} if labelled else {}
        return {**scores, "val_loss": loss / images if images else math.nan}

    def _vectors(self, model: nn.Module, images: Tensor) -> Tensor:
        return self._features(model, images)[OWN]

    @torch.no_grad()
    def _features(self, model: nn.Module, images: Tensor) -> dict[str, Tensor]:
        images = images.to(self.device, non_blocking=True)
        with torch.autocast(self.device.type, self.autocast, enabled=self.autocast is not None):
            return model(images)

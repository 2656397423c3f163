"""Measure a timm model of features, which has no head: two classifiers on its frozen vectors."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from ray_learngene.data.loader import Batch
from ray_learngene.training.feature_scores import Probes, vectors_of


@dataclass(frozen=True)
class FeatureScores:
    """Top-1 in percent of nearest images (`knn`) and of a linear classifier (`linear`), fitted to training images."""

    knn: float
    linear: float
    images: int

    def __str__(self) -> str:
        return f"kNN {self.knn:.2f} %, linear probe {self.linear:.2f} %"


@torch.no_grad()
def evaluate_features(
    model: nn.Module, bank: Iterable[Batch], validation: Iterable[Batch], classes: int, device: torch.device
) -> FeatureScores:
    """Fit both classifiers to labelled training images and score them on validation images."""
    model.eval()
    read = partial(vectors_of, lambda images: model(images.to(device)))
    probes = Probes(*read(bank), classes)
    vectors, labels = read(validation)
    knn, linear = (
        100 * (found == labels).double().mean().item() for found in (probes.knn(vectors), probes.linear(vectors))
    )
    return FeatureScores(knn, linear, len(labels))

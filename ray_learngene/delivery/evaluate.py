"""Measure a model folder the way anyone would use it: plain timm, its own preprocessing."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

from ray_learngene.config import DataConfig, EvaluateConfig
from ray_learngene.data.loader import Batch
from ray_learngene.data.reader import Reader, unreadable_text
from ray_learngene.delivery.features import FeatureScores, evaluate_features
from ray_learngene.delivery.images import ModelImages
from ray_learngene.models.device import resolve_device
from ray_learngene.models.timm_folder import load_timm
from ray_learngene.progress import Progress
from ray_learngene.training.evaluation import Scores, evaluate
from ray_learngene.training.feature_scores import bank_of

log = logging.getLogger(__name__)


def evaluate_folder(folder: str | Path, config: DataConfig, batch_size: int) -> Scores | FeatureScores:
    """Score a timm model folder on the validation split of an image set; unreadable images as `unreadable` says.

    A model without a head is scored by its vectors; see `FeatureScores`.

    Raises:
        UserError: it is no timm model folder, or its classes are not those of the images.
    """
    model = load_timm(Path(folder).expanduser())
    images = ModelImages.open(model, str(folder), config)
    reader = Reader(images.val, config.unreadable)
    device = resolve_device()
    with Progress(f"evaluate {folder}", len(images.val), "images") as progress:

        def counted() -> Iterator[Batch]:
            for batch in images.batches(images.val, batch_size, reader):
                yield batch
                progress.advance(len(batch[0]))

        scores: Scores | FeatureScores
        if model.num_classes:
            scores = evaluate(model.to(device), counted(), device=device)
        else:
            bank, classes = images.batches(bank_of(images.train), batch_size), len(images.train.classes)
            scores = evaluate_features(model.to(device), bank, counted(), classes, device)
    if reader.names():
        log.warning(unreadable_text(reader.names()))
    return scores


def evaluate_model(config: EvaluateConfig) -> Scores | FeatureScores:
    """Score the model folder of a configuration; see `evaluate_folder`."""
    return evaluate_folder(config.model, config, config.batch_size)

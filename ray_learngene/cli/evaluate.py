"""Measure a pulled model the way anyone would use it: plain timm, its own preprocessing."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import ray_learngene.torchvision_cpu  # noqa: F401  isort:skip  (before the first timm import)
import numpy as np
from timm.data import resolve_model_data_config

from ray_learngene.ancestry.classes import order_of
from ray_learngene.config import EvaluateConfig
from ray_learngene.data.image_set import relabelled
from ray_learngene.data.open import open_image_sets
from ray_learngene.data.pipeline import validation_batches
from ray_learngene.data.reader import Reader
from ray_learngene.device import resolve_device
from ray_learngene.errors import UserError
from ray_learngene.models.preprocessing import Preprocessing
from ray_learngene.models.timm_folder import labels_of, load_timm
from ray_learngene.progress import Progress
from ray_learngene.terminal import unreadable_text
from ray_learngene.training.evaluation import Scores, evaluate
from ray_learngene.training.step import Batch

log = logging.getLogger(__name__)


def evaluate_model(config: EvaluateConfig) -> Scores:
    """Top-1 of a timm model folder on the validation split of an image set; unreadable images as `unreadable` says.

    Raises:
        UserError: it is no timm model folder, or its classes are not those of the images.
    """
    model = load_timm(Path(config.model).expanduser())
    sets = open_image_sets(config)
    labels = labels_of(model)
    order = order_of(sets.val.classes, labels) if labels else list(range(len(sets.val.classes)))
    if model.num_classes != len(sets.val.classes) or order is None:
        raise UserError(
            f"{config.model} has {model.num_classes} classes ({', '.join(labels[:3])}, ...), --data {config.data} has "
            f"{len(sets.val.classes)} ({', '.join(sets.val.classes[:3])}, ...): they are not the same label set"
        )
    data = resolve_model_data_config(model)
    preprocessing = Preprocessing.of(model, config.model, input_size=data["input_size"])
    device = resolve_device()
    images = relabelled(sets.val, np.argsort(order), labels or sets.val.classes)
    reader = Reader(images, config.unreadable)
    batches = validation_batches(
        images,
        preprocessing,
        config.batch_size,
        workers=config.loader_workers,
        reader=reader,
        crop_mode=data["crop_mode"],
    )
    with Progress(f"evaluate {config.model}", len(images), "images") as progress:

        def counted() -> Iterator[Batch]:
            for batch in batches:
                yield batch
                progress.advance(len(batch[0]))

        scores = evaluate(model.to(device), counted(), device=device)
    if reader.names():
        log.warning(unreadable_text(reader.names()))
    return scores


def print_evaluation(config: EvaluateConfig) -> None:
    """Print the accuracy of a model folder."""
    scores = evaluate_model(config)
    print(f"{config.model}: top-1 {scores.top1:.2f} % on {int(scores.images):,} images, loss {scores.mean_loss:.4f}")

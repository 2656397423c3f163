"""Distillation of features: an ancestry model without a head, and images without labels, become a learngene.

learngene distill --teach features --ancestry vit_small_patch14_dinov2 --data photos --preset s --name photos-features

The learngene has no head. A sweep gives its descendants a fresh one for the classes of its images.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ray_learngene.ancestry.model import Ancestry
from ray_learngene.config import DistillConfig
from ray_learngene.config.image import ImageShape
from ray_learngene.data.loader import eval_loader
from ray_learngene.data.pipeline import ImagePipeline
from ray_learngene.data.reader import Reader
from ray_learngene.distillation.distill_task import DistillTask
from ray_learngene.errors import UserError, reason_of
from ray_learngene.models.budgets import format_quantity
from ray_learngene.models.features import FeatureReader, feature_shapes
from ray_learngene.training.feature_scores import FeatureScorer, bank_of
from ray_learngene.training.features import FeatureLoss, FeatureObjective, FeatureStudent
from ray_learngene.training.flops import TRAINING_PASSES, forward_flops, training_flops
from ray_learngene.training.step import Batch

log = logging.getLogger(__name__)


@dataclass
class FeatureTask(DistillTask):
    """Distillation of features; `module` is a `FeatureStudent`."""

    def objective(self, device: torch.device, autocast: torch.dtype | None) -> FeatureObjective:
        config = self.config
        loss = FeatureLoss(config.feature_loss, config.feature_vector)
        return FeatureObjective(self._ancestry(device, autocast), FeatureReader(config.feature_layers), loss, autocast)

    def scorer(self, device: torch.device, autocast: torch.dtype | None) -> FeatureScorer:
        bank = self._bank() if self.config.labels and len(self.images.train.classes) > 1 else None
        classes = len(self.images.train.classes)
        return FeatureScorer(self.objective(device, autocast), device, autocast, bank, classes)

    def _bank(self) -> Iterable[Batch]:
        """Return the training images that classifiers are fitted to, as evaluation sees images."""
        images = self.images
        some = bank_of(images.train)
        return eval_loader(
            some,
            images.preprocessing,
            max(1, self.config.batch_size // self.config.accumulation),
            workers=images.loader_workers,
            reader=Reader(some, images.unreadable),
        )

    def flops(self, steps: int) -> dict[str, int]:
        assert isinstance(self.module, FeatureStudent)
        image, batch = self.images.preprocessing.image_size, self.config.batch_size
        projectors = TRAINING_PASSES * steps * batch * self.module.projector_flops()
        student = training_flops(self.module.student, image, batch=batch, steps=steps, seed=self.config.seed)
        asked = forward_flops(self._ancestry(torch.device("cpu"), None), image, batch)
        return {"flops": student + projectors, "teacher_flops": steps * asked}

    def write(self, module: nn.Module, folder: Path) -> dict[str, Any]:
        assert isinstance(module, FeatureStudent)
        return super().write(module.student, folder)


def feature_student(
    config: DistillConfig, auxiliary: nn.Module, ancestry: Ancestry, image: ImageShape
) -> FeatureStudent:
    """Give an auxiliary model a projector for each of the ancestry model's features."""
    reader = FeatureReader(config.feature_layers)
    try:
        shapes = feature_shapes(ancestry, lambda model, images: model(images, reader), torch.zeros(1, *image))
    except (NotImplementedError, AssertionError, TypeError, AttributeError) as error:
        reason = reason_of(error, 200)
        raise UserError(f"--ancestry {config.ancestry}: timm gives no feature maps of this model ({reason})") from error
    log.info(
        f"features of {config.ancestry}: "
        + ", ".join(f"{name} {' x '.join(map(str, shape))}" for name, shape in shapes.items())
    )
    return FeatureStudent(auxiliary, reader, shapes, image)


def refuse_cache(config: DistillConfig, ancestry: Ancestry, images: ImagePipeline) -> None:
    """Refuse to cache features, and say what the cache would take."""
    if not config.soft_labels:
        return
    reader, image = FeatureReader(config.feature_layers), images.preprocessing.image_size
    shapes = feature_shapes(ancestry, lambda model, given: model(given, reader), torch.zeros(1, *image))
    views = len(images.train) // config.batch_size * config.batch_size
    size = 2 * views * sum(shape.numel() for shape in shapes.values())
    raise UserError(
        f"--soft-labels caches logits: features of --ancestry {config.ancestry} would take "
        f"{format_quantity('memory', size)} an epoch in float16: leave it out, or use --teach logits"
    )

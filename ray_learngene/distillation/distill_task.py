"""What a distillation of logits trains and publishes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ray_learngene.ancestry.answers import Answers
from ray_learngene.ancestry.model import Ancestry
from ray_learngene.config import DistillConfig
from ray_learngene.distillation.task import Task
from ray_learngene.methods.base import Method
from ray_learngene.provenance import publishable
from ray_learngene.store.learngenes import StoredLearngene
from ray_learngene.training.evaluation import LabelScorer, Scorer
from ray_learngene.training.flops import forward_flops, training_flops
from ray_learngene.training.objectives import DistillationLoss, DistillationObjective, LabelObjective, Objective


@dataclass
class DistillTask(Task):
    """Distillation of an auxiliary model."""

    kind = "learngene"

    config: DistillConfig
    method: Method
    ancestry: Ancestry | None
    labels: tuple[str, ...]
    start: StoredLearngene | None

    @property
    def _asks(self) -> bool:
        """Whether the ancestry model's answers have a weight."""
        return self.config.alpha > 0

    def objective(self, device: torch.device, autocast: torch.dtype | None) -> Objective:
        if not self._asks:
            return LabelObjective(self.config.smoothing)
        loss = DistillationLoss(self.config.distillation, self.config.alpha, self.config.tau)
        return DistillationObjective(
            None if self.config.soft_labels else self._ancestry(device, autocast),
            loss,
            smoothing=self.config.smoothing,
            labels=self.config.labels,
            autocast=autocast,
        )

    def answers(self, device: torch.device, autocast: torch.dtype | None) -> Answers | None:
        if not self.config.soft_labels or not self._asks or self.ancestry is None:
            return None
        return Answers(self.config, self.config, self.images, self.ancestry, self.store, device, autocast)

    def scorer(self, device: torch.device, autocast: torch.dtype | None) -> Scorer:
        return LabelScorer(device, autocast, None if self.config.labels else self._ancestry(device, autocast))

    def _ancestry(self, device: torch.device, autocast: torch.dtype | None) -> Ancestry:
        assert self.ancestry is not None, "only a training from labels alone has no ancestry model"
        return self.ancestry.ready(device, compiled=self.config.compile, autocast=autocast)

    def flops(self, steps: int) -> dict[str, int]:
        image, batch = self.images.preprocessing.image_size, self.config.batch_size
        asked = forward_flops(self.ancestry, image, batch) if self.ancestry and self._asks else 0
        return {
            "flops": training_flops(self.module, image, batch=batch, steps=steps, seed=self.config.seed),
            "teacher_flops": steps * asked,
        }

    def write(self, module: nn.Module, folder: Path) -> dict[str, Any]:
        learngene = self.method.extract(module)
        learngene = learngene.describe(
            labels=self.labels, preprocessing=self.images.preprocessing.model_dump(mode="json")
        )
        learngene.save(folder)
        metadata: dict[str, Any] = json.loads(json.dumps(learngene.description()))
        if self.config.ancestry:
            metadata["ancestry"] = publishable(self.config.ancestry)
        return metadata | ({"start": self.start.facts()} if self.start else {})

"""What a step minimises: the loss of one micro-batch, from labels or from an ancestry model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ray_learngene.engine import Engine, Logits
from ray_learngene.losses import DistillationLoss, label_loss
from ray_learngene.soft_labels.kept import SoftLabels


class Objective(Protocol):
    """Loss of one micro-batch, of all that a `Batch` holds: `loss` is what is minimised, other entries are reported."""

    def __call__(
        self, model: Engine, images: Tensor, targets: Tensor, /, *args: Any, **kwargs: Any
    ) -> dict[str, Tensor]: ...


def mean_loss(logits: Logits, loss: Callable[[Tensor], dict[str, Tensor]]) -> dict[str, Tensor]:
    """The loss of logits, averaged where there are several."""
    if isinstance(logits, Tensor):
        return loss(logits)
    losses = [loss(one) for one in logits]
    return {name: torch.stack([each[name] for each in losses]).mean() for name in losses[0]}


class LabelObjective:
    """Cross-entropy with the labels."""

    def __init__(self, smoothing: float = 0.0) -> None:
        self.smoothing = smoothing

    def __call__(self, model: Engine, images: Tensor, targets: Tensor) -> dict[str, Tensor]:
        return mean_loss(model(images), lambda logits: {"loss": label_loss(logits, targets, self.smoothing)})


class DistillationObjective:
    """Distillation from a frozen ancestry model that sees the very images the student sees.

    Args:
        ancestry: None where its answers come with every batch.
    """

    def __init__(
        self,
        ancestry: nn.Module | None,
        loss: DistillationLoss,
        *,
        smoothing: float = 0.0,
        labels: bool = True,
        autocast: torch.dtype | None = None,
    ) -> None:
        self.ancestry = ancestry.eval() if ancestry is not None else None
        self.loss, self.smoothing, self.labels, self.autocast = loss, smoothing, labels, autocast

    def __call__(
        self, model: Engine, images: Tensor, targets: Tensor, soft_labels: SoftLabels | None = None
    ) -> dict[str, Tensor]:
        teacher = self._ask(images) if soft_labels is None else soft_labels.logits()
        labels = targets if self.labels else None
        return mean_loss(model(images), lambda logits: self.loss(logits, teacher, labels, self.smoothing))

    @torch.no_grad()
    def _ask(self, images: Tensor) -> Tensor:
        assert self.ancestry is not None, "no ancestry model, and no soft labels with the batch"
        with torch.autocast(images.device.type, self.autocast, enabled=self.autocast is not None):
            return self.ancestry(images)

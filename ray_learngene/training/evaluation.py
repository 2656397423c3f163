"""Scores of a model on a validation split."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from ray_learngene.training.objectives import label_loss
from ray_learngene.training.step import Batch

# every score of a model, as metrics and manifests name them
SCORES = ("top1", "knn", "linear", "val_loss", "ema_top1", "ema_knn", "ema_linear")


class Scorer(Protocol):
    """Scores a model on the validation split.

    Attributes:
        width: Number of summands of a batch; those of all batches and ranks add up.
    """

    width: int

    def begin(self, models: Iterable[nn.Module]) -> None:
        """Prepare to score models, which are in evaluation mode."""
        ...

    def score(self, model: nn.Module, batch: Batch) -> Tensor:
        """Score one batch; return its summands, float64 `[width]` on the device."""
        ...

    def metrics(self, row: list[float]) -> dict[str, float]:
        """Turn the sums into metrics, `val_loss` among them."""
        ...


@dataclass
class Scores:
    """Sums over evaluated images, so that the scores of ranks add up."""

    correct: float = 0.0
    loss: float = 0.0
    images: float = 0.0

    @property
    def top1(self) -> float:
        """Percentage of images whose highest logit is the label."""
        return 100 * self.correct / self.images if self.images else math.nan

    @property
    def mean_loss(self) -> float:
        return self.loss / self.images if self.images else math.nan


class LabelScorer:
    """Top-1 and cross-entropy.

    Args:
        ancestry: Its predictions replace the labels, so that top-1 is the agreement with it. None uses the labels.
    """

    width = 3

    def __init__(
        self, device: torch.device, autocast: torch.dtype | None = None, ancestry: nn.Module | None = None
    ) -> None:
        self.device, self.autocast, self.ancestry = device, autocast, ancestry

    def begin(self, models: Iterable[nn.Module]) -> None:
        return None

    @torch.no_grad()
    def score(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the summands of `Scores`, float64 `[3]` on the device."""
        images, targets = (tensor.to(self.device, non_blocking=True) for tensor in batch[:2])
        with torch.autocast(self.device.type, self.autocast, enabled=self.autocast is not None):
            logits = model(images).float()
            if self.ancestry is not None:
                targets = self.ancestry(images).argmax(dim=-1)
        correct = (logits.argmax(dim=-1) == targets).sum()
        # filled on the device: copying the number from the host would wait for the device's queue
        images_seen = torch.full_like(correct, len(targets))
        return torch.stack([correct, label_loss(logits, targets) * len(targets), images_seen]).double()

    def metrics(self, row: list[float]) -> dict[str, float]:
        scores = Scores(*row)
        return {"top1": scores.top1, "val_loss": scores.mean_loss}


def evaluate(model: nn.Module, batches: Iterable[Batch], *, device: torch.device) -> Scores:
    """Score a model with the labels, and leave it in evaluation mode."""
    model.eval()
    scorer, sums = LabelScorer(device), torch.zeros(3, dtype=torch.float64, device=device)
    for batch in batches:
        sums += scorer.score(model, batch)
    return Scores(*sums.tolist())

"""Training objectives: the loss of one micro-batch, from labels or from an ancestry model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ray_learngene.training.engine import Engine
from ray_learngene.training.soft_labels import SoftLabels


class Objective(Protocol):
    """Computes the losses of one micro-batch, a `Batch`: `loss` is minimised, other entries are reported."""

    def __call__(
        self, model: Engine, images: Tensor, targets: Tensor, /, *args: Any, **kwargs: Any
    ) -> dict[str, Tensor]: ...


@torch.no_grad()
def teacher_logits(ancestry: nn.Module, images: Tensor, autocast: torch.dtype | None) -> Tensor:
    """Return the logits of an ancestry model at a precision; None is the model's own."""
    with torch.autocast(images.device.type, autocast, enabled=autocast is not None):
        return ancestry(images)


def mean_loss(logits: Any, loss: Callable[[Any], dict[str, Tensor]]) -> dict[str, Tensor]:
    """Compute the loss of logits, or of features; average it over those of several sub-models."""
    if not isinstance(logits, tuple):
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
    """Distillation from a frozen ancestry model that sees the same images as the student.

    Args:
        ancestry: None if its logits come with every batch.
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
        if soft_labels is None:
            assert self.ancestry is not None, "no ancestry model, and no soft labels with the batch"
            teacher = teacher_logits(self.ancestry, images, self.autocast)
        else:
            teacher = soft_labels.logits()
        labels = targets if self.labels else None
        return mean_loss(model(images), lambda logits: self.loss(logits, teacher, labels, self.smoothing))


class DistillationLoss(nn.Module):
    """A weighted sum of label loss and distillation loss.

    Soft (Hinton et al., 2015): `(1-α)·CE(z_s, y) + α·τ²·KL(softmax(z_t/τ) ‖ softmax(z_s/τ))`, the KL averaged over the
    batch. Hard (DeiT, eq. 3): `(1-α)·CE(z_s, y) + α·CE(z_s, argmax z_t)`. SWS and TLEG publish α = 1, τ = 1: no labels.

    Args:
        alpha: Weight of the distillation term; 1 ignores the labels.
        tau: Temperature of the soft form.
    """

    def __init__(self, kind: Literal["soft", "hard"] = "soft", alpha: float = 1.0, tau: float = 1.0) -> None:
        super().__init__()
        if not 0 <= alpha <= 1 or tau <= 0:
            raise ValueError(f"need 0 <= alpha <= 1 and tau > 0, got alpha {alpha} and tau {tau}")
        self.kind, self.alpha, self.tau = kind, alpha, tau

    def forward(
        self, student: Tensor, teacher: Tensor, targets: Tensor | None, smoothing: float = 0.0
    ) -> dict[str, Tensor]:
        """Compute the loss and its two terms, scalars in fp32.

        Args:
            student: Logits `[B, K]`.
            teacher: Logits `[B, K]`, no gradient.
            targets: Class indices `[B]` or probabilities `[B, K]`; None without labels (then α must be 1).
            smoothing: Label smoothing of class indices (probabilities are smoothed already).

        Returns:
            `loss`, `distill_loss` and, with labels, `label_loss`. A term of weight 0 is reported, without a gradient.
        """
        student, teacher = student.float(), teacher.float()
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.alpha > 0):
            if self.kind == "soft":
                log_p_student = F.log_softmax(student / self.tau, dim=-1)
                log_p_teacher = F.log_softmax(teacher / self.tau, dim=-1)
                distill = F.kl_div(log_p_student, log_p_teacher, reduction="batchmean", log_target=True) * self.tau**2
            else:
                distill = F.cross_entropy(student, teacher.argmax(dim=-1))
        if targets is None:
            return {"loss": distill, "distill_loss": distill.detach()}
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.alpha < 1):
            label = label_loss(student, targets, smoothing)
        loss = self.alpha * distill + (1 - self.alpha) * label
        if self.alpha in (0.0, 1.0):  # not 0 * term: a non-finite term of weight 0 must not affect the sum
            loss = distill if self.alpha == 1.0 else label
        return {"loss": loss, "distill_loss": distill.detach(), "label_loss": label.detach()}


def label_loss(logits: Tensor, targets: Tensor, smoothing: float = 0.0) -> Tensor:
    """Compute the cross-entropy of logits `[B, K]` with class indices `[B]` (smoothed) or probabilities `[B, K]`."""
    return F.cross_entropy(logits.float(), targets, label_smoothing=smoothing if targets.ndim == 1 else 0.0)

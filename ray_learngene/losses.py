"""Distillation losses."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class DistillationLoss(nn.Module):
    """Label loss and distillation loss, mixed.

    Soft (Hinton et al., 2015): `(1-α)·CE(z_s, y) + α·τ²·KL(softmax(z_t/τ) ‖ softmax(z_s/τ))`, the KL averaged over the
    batch. Hard (DeiT, eq. 3): `(1-α)·CE(z_s, y) + α·CE(z_s, argmax z_t)`. SWS and TLEG publish α = 1, τ = 1: no labels.

    Args:
        alpha: Weight of the distillation term; 1 leaves the labels out.
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
        """The loss and its two terms, scalars in fp32.

        Args:
            student: Logits `[B, K]`.
            teacher: Logits `[B, K]`, no gradient.
            targets: Class indices `[B]` or probabilities `[B, K]`; None where there are no labels (then α must be 1).
            smoothing: Label smoothing of class indices (probabilities are smoothed already).

        Returns:
            `loss`, `distill_loss` and, where there are labels, `label_loss`. A term of weight 0 is reported, without
            a gradient.
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
        if self.alpha in (0.0, 1.0):  # not 0 * term: a term without weight must not be able to spoil the sum
            loss = distill if self.alpha == 1.0 else label
        return {"loss": loss, "distill_loss": distill.detach(), "label_loss": label.detach()}


def label_loss(logits: Tensor, targets: Tensor, smoothing: float = 0.0) -> Tensor:
    """Cross-entropy of logits `[B, K]` with class indices `[B]` (smoothed) or probabilities `[B, K]` (as they are)."""
    return F.cross_entropy(logits.float(), targets, label_smoothing=smoothing if targets.ndim == 1 else 0.0)

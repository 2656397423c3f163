"""Ends training on a non-finite loss, before a checkpoint is written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ray_learngene.errors import Diverged


class NonFiniteLoss(Diverged):
    """The loss became NaN or infinite."""


class FiniteGuard:
    """Checks every loss; a non-finite loss ends training and never reaches a checkpoint.

    A single process on the CPU checks the loss before its step. Otherwise reading a loss would wait for the device, and
    sharing it would wait for the other ranks. The result therefore stays on the device until `check` reads it.

    Args:
        total: All-reduce: sums a tensor over all ranks in place, so that they stop at the same step. None for one rank.
    """

    def __init__(self, device: torch.device, total: Callable[[Tensor], Any] | None = None) -> None:
        self.immediate = device.type == "cpu" and total is None
        self.total = total
        self.bad = torch.zeros((), device=device)

    def watch(self, losses: dict[str, Tensor], step: int, lr: float) -> None:
        self.bad += ~torch.isfinite(losses["loss"].detach())
        if self.immediate:
            self.check(step, lr)

    def check(self, step: int, lr: float) -> None:
        """Raise `NonFiniteLoss` if any loss so far was not finite. All ranks call it at the same step."""
        bad = self.bad.clone()
        if self.total is not None:
            self.total(bad)
        if bad:
            raise NonFiniteLoss(
                f"the loss is not finite at or before step {step} (learning rate {lr:.2e}): lower --lr, lengthen "
                "--warmup-epochs, set --clip-grad 1 or train with --precision fp32; the last checkpoint is good"
            )

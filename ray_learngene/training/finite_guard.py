"""A loss that is not finite ends training before it reaches a checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ray_learngene.errors import Diverged


class NonFiniteLoss(Diverged):
    """The loss became NaN or infinite."""


class FiniteGuard:
    """Sees every loss; a non-finite one ends training and never reaches a checkpoint.

    One process on the CPU does not take the step that would use it. Elsewhere reading a loss waits for the device, and
    telling it to other workers for those, so the verdict is kept and read by `check`.

    Args:
        total: Adds a tensor up over all workers in place, so that all of them stop at the same step; None for one.
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
        """Raise `NonFiniteLoss` if any loss so far was not finite. All workers call it at the same step."""
        bad = self.bad.clone()
        if self.total is not None:
            self.total(bad)
        if bad:
            raise NonFiniteLoss(
                f"the loss is not finite at or before step {step} (learning rate {lr:.2e}): lower --lr, lengthen "
                "--warmup-epochs, set --clip-grad 1 or train with --precision fp32; the last checkpoint is good"
            )

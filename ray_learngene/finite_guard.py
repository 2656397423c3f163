"""A loss that is not finite ends training before it reaches a checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ray_learngene.errors import RunError


class NonFiniteLoss(RunError):
    """The loss became NaN or infinite; the step was not taken."""


class FiniteGuard:
    """Sees every loss; a non-finite one ends training and never reaches a checkpoint.

    On the CPU the step that would use it is not taken: workers tell one another of their losses beside the backward
    pass. On an accelerator reading a loss waits for the device, so the verdict is kept there and read by `check`,
    before a checkpoint and at every epoch's end.

    Args:
        total: Adds a tensor up over all workers in place, so that all of them stop at the same step; as
            `torch.distributed.all_reduce`, with `async_op`.
    """

    def __init__(self, device: torch.device, total: Callable[..., Any] = lambda tensor, async_op=False: None) -> None:
        self.immediate = device.type == "cpu"
        self.total = total
        self.bad = torch.zeros((), device=device)
        self._bad_anywhere = self.bad
        self._told: Any = None

    def watch(self, losses: dict[str, Tensor]) -> None:
        """See the losses of a micro-batch, before its backward pass."""
        self.bad += ~torch.isfinite(losses["loss"].detach())
        if self.immediate:
            self._bad_anywhere = self.bad.clone()
            self._told = self.total(self._bad_anywhere, async_op=True)

    def allow(self, step: int, lr: float) -> None:
        """Raise `NonFiniteLoss` before the optimizer uses a gradient that is not finite, where that can be known."""
        if self.immediate:
            if self._told is not None:
                self._told.wait()
            _require_none(self._bad_anywhere, step, lr)

    def check(self, step: int, lr: float) -> None:
        """Raise `NonFiniteLoss` if any loss so far was not finite. All workers call it at the same step."""
        bad = self.bad.clone()
        self.total(bad)
        _require_none(bad, step, lr)


def _require_none(bad: Tensor, step: int, lr: float) -> None:
    if bad:
        raise NonFiniteLoss(
            f"the loss is not finite at or before step {step} (learning rate {lr:.2e}): lower --lr, lengthen "
            "--warmup-epochs, set --clip-grad 1 or train with --precision fp32; the last checkpoint is good"
        )

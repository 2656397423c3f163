"""One process among those that train a model together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ray_learngene.config import OptimizationConfig
from ray_learngene.errors import RunError


@dataclass(frozen=True)
class World:
    """This process among the workers of a run; `all_reduce` sums a tensor over all of them in place."""

    device: torch.device
    rank: int = 0
    world_size: int = 1
    all_reduce: Callable[[Tensor], Any] = lambda tensor: None

    def micro_batch(self, config: OptimizationConfig) -> float:
        """Images of a micro-batch, on average over all workers."""
        return config.batch_size / (self.world_size * config.accumulation)

    def agree(self, error: RunError | None) -> None:
        """Raise on all workers what any of them has met."""
        failed = torch.tensor(float(error is not None), device=self.device)
        self.all_reduce(failed)
        if failed:
            raise error or RunError("another worker cannot go on; its error is told by the first one")

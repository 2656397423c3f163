"""This process among the ranks that train a model together."""

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
    """Rank and size of a run's process group; `all_reduce` sums a tensor over all ranks in place."""

    device: torch.device
    rank: int = 0
    world_size: int = 1
    all_reduce: Callable[[Tensor], Any] = lambda tensor: None

    def micro_batch(self, config: OptimizationConfig) -> float:
        """Return the number of images of a micro-batch, on average over all ranks."""
        return config.batch_size / (self.world_size * config.accumulation)

    def agree(self, error: RunError | None) -> None:
        """Raise on all ranks if any of them has an error."""
        failed = torch.tensor(float(error is not None), device=self.device)
        self.all_reduce(failed)
        if failed:
            raise error or RunError("another worker cannot continue; see that worker's error")

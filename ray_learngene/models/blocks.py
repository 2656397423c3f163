"""The blocks of a timm model, and their stochastic depth."""

from __future__ import annotations

from collections.abc import Sequence

import ray_learngene.models.timm_import  # noqa: F401  isort:skip  (before the first timm import)
from timm.layers import DropPath, calculate_drop_path_rates
from torch import nn


def set_drop_path(model: nn.Module, rate: float) -> None:
    """Set a model's stochastic depth, linear from 0 at the first block to `rate` at the last."""
    blocks = blocks_in_order(model)
    rates: Sequence[float] = calculate_drop_path_rates(rate, len(blocks))  # type: ignore[assignment]
    for block, block_rate in zip(blocks, rates, strict=True):
        for name in ("drop_path1", "drop_path2", "drop_path"):
            if isinstance(getattr(block, name, None), DropPath | nn.Identity):
                setattr(block, name, DropPath(block_rate) if block_rate else nn.Identity())


def blocks_in_order(model: nn.Module) -> list[nn.Module]:
    """Return a model's blocks with stochastic depth, in order."""
    names = ("drop_path1", "drop_path2", "drop_path")
    return [
        module
        for module in model.modules()
        if any(isinstance(getattr(module, name, None), DropPath | nn.Identity) for name in names)
    ]

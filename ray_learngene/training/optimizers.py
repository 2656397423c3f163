"""timm's optimizer and learning rate schedule, from a configuration."""

from __future__ import annotations

import torch
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from torch import nn

from ray_learngene.config import OptimizationConfig


def learning_rate(config: OptimizationConfig) -> float:
    """Return the peak learning rate of a configuration: `lr` times the global batch over 512."""
    return config.lr * config.batch_size / 512


def create_optimizer(module: nn.Module, config: OptimizationConfig) -> torch.optim.Optimizer:
    """Create fused AdamW without weight decay on biases, norms and the position embedding."""
    return create_optimizer_v2(
        module, opt="adamw", lr=learning_rate(config), weight_decay=config.weight_decay, fused=True
    )


def create_schedule(
    optimizer: torch.optim.Optimizer, config: OptimizationConfig, steps_per_epoch: int
) -> Scheduler | None:
    """Create a linear warm-up, then a cosine to `min_lr`: a function of the step alone. None for 0 epochs."""
    if config.epochs == 0:
        return None
    schedule, _ = create_scheduler_v2(
        optimizer,
        sched="cosine",
        num_epochs=config.epochs,
        warmup_epochs=config.warmup_epochs,  # type: ignore[arg-type]  # fractions work
        warmup_lr=config.warmup_lr,
        min_lr=min(config.min_lr, learning_rate(config)),
        step_on_epochs=False,
        updates_per_epoch=steps_per_epoch,
    )
    return schedule

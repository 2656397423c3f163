"""The engine interface, which follows DeepSpeed's, and its single-process implementation.

This module depends on neither Ray nor storage nor methods.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ray_learngene.config import OptimizationConfig
from ray_learngene.models.checkpointing import checkpoint_gradients
from ray_learngene.models.compile import compile_layers
from ray_learngene.training.engine_state import EngineState, read_state, write_state

# logits `[B, classes]` or features by name, or a tuple of one such value per sub-model of an elastic auxiliary model
Output = Tensor | dict[str, Tensor] | tuple[Any, ...]


class Engine(Protocol):
    """The interface that training uses; `DeepSpeedEngine` and `TorchEngine` implement it."""

    module: nn.Module

    def __call__(self, images: Tensor) -> Output: ...
    def backward(self, loss: Tensor) -> Any: ...
    def step(self) -> Any: ...
    def train(self, mode: bool = True) -> Any: ...
    def eval(self) -> Any: ...


class TorchEngine:
    """A single process: autocast, accumulation, clipping and the optimizer step behind DeepSpeed's interface."""

    def __init__(
        self,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        accumulation: int = 1,
        clip_grad: float = 0.0,
        autocast: torch.dtype | None = None,
    ) -> None:
        self.module, self.optimizer = module, optimizer
        self.accumulation, self.clip_grad, self.autocast = accumulation, clip_grad, autocast
        self.device = next(module.parameters()).device
        self._micro_batches = 0

    def __call__(self, images: Tensor) -> Output:
        with torch.autocast(self.device.type, self.autocast, enabled=self.autocast is not None):
            return self.module(images)

    def backward(self, loss: Tensor) -> None:
        (loss / self.accumulation).backward()

    def step(self) -> None:
        """Count a micro-batch; after the last one of an accumulation, clip, step and clear the gradients."""
        self._micro_batches += 1
        if self._micro_batches % self.accumulation:
            return
        if self.clip_grad > 0:
            nn.utils.clip_grad_norm_(self.module.parameters(), self.clip_grad)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def train(self, mode: bool = True) -> None:
        self.module.train(mode)

    def eval(self) -> None:
        self.module.eval()

    def save(self, folder: Path) -> None:
        """Write weights and optimizer state."""
        write_state(folder, EngineState.of(self.module, self.optimizer))

    def load(self, folder: Path) -> None:
        """Load a state that `save` wrote; the optimizer settings of this run stay in force."""
        state = read_state(folder, self.device)
        self.module.load_state_dict(state.model)
        state.restore(self.optimizer)


def prepare_layers(module: nn.Module, config: OptimizationConfig) -> None:
    """Compile the layers of a module and checkpoint their gradients, as the settings say.

    Raises:
        RunError: torch cannot compile here.
        UserError: timm cannot checkpoint this class of model.
    """
    if config.compile:
        compile_layers(module)
    if config.grad_checkpointing:
        checkpoint_gradients(module)


def resolve_precision(precision: str, device: torch.device) -> torch.dtype | None:
    """Return the autocast dtype of a `precision` setting; None is fp32. `auto` is bf16 on GPUs with native support."""
    if precision == "auto":
        computes = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if computes else None
    return torch.bfloat16 if precision == "bf16" else None

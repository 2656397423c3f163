"""Gradient checkpointing: the backward pass computes the activations inside a block again instead of storing them."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from ray_learngene.errors import UserError
from ray_learngene.models.blocks import blocks_in_order
from ray_learngene.models.swapping import swapped


def checkpoint_gradients(model: nn.Module) -> None:
    """Switch on timm's gradient checkpointing, or checkpoint the blocks of a model for which timm has none.

    Losses, gradients and running statistics do not change.

    Raises:
        UserError: it has neither.
    """
    try:
        model.set_grad_checkpointing(True)  # type: ignore[operator]
    except (AttributeError, AssertionError):
        blocks = blocks_in_order(model)
        if not blocks:
            raise UserError(
                f"--grad-checkpointing: timm has none for a {type(model).__name__}: leave it out; --accumulation "
                "lowers the memory of a step too"
            ) from None
        checkpoint_blocks(blocks)
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.register_forward_pre_hook(_copy_statistics)
            module.register_forward_hook(_restore_statistics, always_call=True)


def _copy_statistics(module: nn.Module, inputs: Any) -> None:
    """Let a pass that the backward pass repeats update copies: the first pass has updated the statistics."""
    if torch._C._current_graph_task_id() != -1:  # inside of a backward pass
        module.__dict__["_first_pass"] = module._buffers
        module._buffers = {name: None if each is None else each.clone() for name, each in module._buffers.items()}


def _restore_statistics(module: nn.Module, inputs: Any, output: Any) -> None:
    if "_first_pass" in module.__dict__:
        module._buffers = module.__dict__.pop("_first_pass")


def checkpoint_blocks(blocks: Iterable[nn.Module]) -> None:
    """Checkpoint blocks whose parameters are swapped in for the forward pass alone, as `functional_call` does.

    timm's own checkpointing would repeat the forward pass on the parameters that were there before.
    """
    for block in blocks:
        block.__class__ = _checkpointed(type(block))  # type: ignore[arg-type]  # classes are hashable


@cache
def _checkpointed(cls: type[nn.Module]) -> type[nn.Module]:
    def call(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return cls.__call__(self, *args, **kwargs)
        tensors: dict[str, Tensor] = {**dict(self.named_parameters()), **dict(self.named_buffers())}
        first = True

        def run(*args: Any, **kwargs: Any) -> Any:
            nonlocal first
            if first:  # inside of the outer call, where the block has its parameters
                first = False
                return cls.__call__(self, *args, **kwargs)
            with swapped(self, tensors):
                return cls.__call__(self, *args, **kwargs)

        return checkpoint(run, *args, use_reentrant=False, **kwargs)

    return type(cls.__name__, (cls,), {"__call__": call})

"""torch.compile, block by block: equal blocks of one or several models are compiled once.

A whole model of 16 layers compiles in a minute or more, again for every depth. One layer takes seconds
(benchmarks/README.md).
"""

from __future__ import annotations

import os
import shutil
import sysconfig
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import ray_learngene.models.timm_import  # noqa: F401  isort:skip  (before the first timm import)
import torch
from timm.layers import DropPath
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from ray_learngene.errors import RunError
from ray_learngene.models.blocks import blocks_in_order

# Each shape, mode and precision of the models in a process needs a graph; torch's own limit is 8.
_GRAPHS = 256


def require_compiler() -> None:
    """Check that torch will be able to compile.

    Raises:
        RunError: the C++ compiler or Python's headers are missing.
    """
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None or not Path(sysconfig.get_path("include"), "Python.h").exists():
        raise RunError(
            f"--compile needs a C++ compiler ({compiler}) and Python's headers on every host that trains: install them "
            "(apt-get install g++ python3-dev), or leave --compile out"
        )


def compile_layers(model: nn.Module) -> None:
    """Compile a model's blocks; a model without any is compiled as a whole.

    Weights, state dict and the samples of stochastic depth do not change. Results differ by rounding.

    Raises:
        RunError: see `require_compiler`.
    """
    require_compiler()
    # the limit is per process: a limit per function needs torch 2.13, and GPU installations use older versions too
    torch._dynamo.config.recompile_limit = max(_GRAPHS, torch._dynamo.config.recompile_limit)
    warnings.filterwarnings("ignore", message="TensorFloat32 tensor cores")  # fp32 is on purpose
    blocks = blocks_in_order(model)
    for block in blocks:
        if type(block) in (Block, CompiledBlock):
            block.__class__ = CompiledBlock
        elif block._compiled_call_impl is None:
            for module in block.modules():
                if type(module) is DropPath:
                    module.__class__ = EagerDropPath
            block.compile(dynamic=False)
    if not blocks and model._compiled_call_impl is None:
        model.compile(dynamic=False)


class EagerDropPath(DropPath):
    """Stochastic depth that is sampled outside graphs: the compiler would make every rate a graph of its own."""

    @torch.compiler.disable
    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = super().forward(x)
        return found


class CompiledBlock(Block):
    """A timm block that runs compiled."""

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        return self.at_rate(x, getattr(self.drop_path1, "drop_prob", 0.0), attn_mask, is_causal)

    def at_rate(self, x: Tensor, drop_path: float, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """Apply the layer at a drop-path rate, sampled outside the graph: the compiler would make a rate constant."""
        kept = [_kept(x, drop_path) if drop_path and self.training else None for _ in range(2)]
        return _compiled()(self, x, *kept, attn_mask, is_causal)


def _kept(x: Tensor, drop_path: float) -> Tensor:
    """Sample the factors `[B, 1, ...]` of timm's `drop_path`, in fp32, before rounding to the branch's precision."""
    mask = torch.empty((len(x),) + (1,) * (x.ndim - 1), device=x.device)
    return mask.bernoulli_(1 - drop_path).div_(1 - drop_path)


@cache
def _compiled() -> Any:
    return torch.compile(_layer, dynamic=False)


def _layer(
    block: Block,
    x: Tensor,
    kept1: Tensor | None,
    kept2: Tensor | None,
    attn_mask: Tensor | None,
    is_causal: bool,
) -> Tensor:
    branch = block.ls1(block.attn(block.norm1(x), attn_mask=attn_mask, is_causal=is_causal))
    x = x + (branch if kept1 is None else branch * kept1.to(branch.dtype))
    branch = block.ls2(block.mlp(block.norm2(x)))
    return x + (branch if kept2 is None else branch * kept2.to(branch.dtype))

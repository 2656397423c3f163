"""FLOPs of training, counted by torch on copies of the modules without storage (two for each multiply-accumulate)."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Hashable

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ray_learngene.engine import draw_step

# The backward pass costs about twice the forward one.
TRAINING_PASSES = 3


def forward_flops(module: nn.Module, image: int, batch: int = 1) -> int:
    """FLOPs of one forward pass of images `[batch, 3, image, image]`, in the mode that the module is in.

    Matrix products, convolutions and attention's two products are counted; norms and activations are not.
    """
    return _forward_flops(copy.deepcopy(module).to("meta"), image, batch)


def _forward_flops(module: nn.Module, image: int, batch: int) -> int:
    # the counter knows attention as two products, not as the fused kernel of the CPU
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        module(torch.zeros(batch, 3, image, image, device="meta"))
    return counter.get_total_flops()


def training_flops(module: nn.Module, image: int, *, batch: int, steps: int, seed: int = 0) -> int:
    """FLOPs of `steps` optimizer steps at a global batch of `batch` images, the backward pass as twice the forward.

    A module that is another model in every step is counted as what it draws in each of them.
    """
    module = copy.deepcopy(module).to("meta").train()
    if not hasattr(module, "draw"):
        return TRAINING_PASSES * steps * _forward_flops(module, image, batch)
    drawn: Counter[Hashable] = Counter()
    flops: dict[Hashable, int] = {}
    for step in range(steps):
        draw_step(module, seed, step)
        drawn[module.drawn] += 1
        if module.drawn not in flops:
            flops[module.drawn] = _forward_flops(module, image, batch)
    return TRAINING_PASSES * sum(count * flops[key] for key, count in drawn.items())

"""Training FLOPs, two per multiply-accumulate, counted by torch on copies of the modules on the meta device."""

from __future__ import annotations

import copy
from collections import Counter
from functools import partial

from torch import nn

from ray_learngene.config.image import ImageShape
from ray_learngene.methods.elastic import ElasticVisionTransformer, draw_step
from ray_learngene.models import costs
from ray_learngene.models.specs import Spec

# The backward pass costs about twice the forward pass.
TRAINING_PASSES = 3


def forward_flops(module: nn.Module, image: ImageShape, batch: int = 1) -> int:
    """Count the FLOPs of one forward pass of images `[batch, *image]`, in the module's current mode.

    Matrix products, convolutions and attention's two products count; norms and activations do not.
    """
    return costs.forward_flops(_on_meta(module), image, batch)


def _on_meta(module: nn.Module) -> nn.Module:
    """Copy a module to the meta device and freeze it: torch's counter would track modules through their gradients."""
    return copy.deepcopy(module).to("meta").requires_grad_(False)


def training_flops(module: nn.Module, image: ImageShape, *, batch: int, steps: int, seed: int = 0) -> int:
    """Count the FLOPs of `steps` optimizer steps at a global batch of `batch` images; backward is twice forward.

    For an elastic module every step counts the sub-models that it samples.
    """
    module = _on_meta(module).train()
    if not isinstance(module, ElasticVisionTransformer):
        return TRAINING_PASSES * steps * costs.forward_flops(module, image, batch)
    passes: Counter[tuple[Spec, int]] = Counter()
    for step in range(steps):
        draw_step(module, seed, step, steps)
        passes.update(module.passes(batch))
    return TRAINING_PASSES * sum(
        count * costs.forward_flops(partial(module.run_as, spec), image, images)
        for (spec, images), count in passes.items()
    )

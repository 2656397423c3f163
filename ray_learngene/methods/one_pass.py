"""One forward pass through vision transformers of several depths that share their layers.

The batch is sorted by depth. Each layer of the deepest model runs once, on the images of all models that have it: one
large matrix product in place of several small ones, for the same sums.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any

import ray_learngene.models.timm_import  # noqa: F401  isort:skip  (before the first timm import)
import torch
from timm.layers import calculate_drop_path_rates
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from ray_learngene.models.build import build, meta_model
from ray_learngene.models.checkpointing import checkpoint_blocks
from ray_learngene.models.meta import on_meta
from ray_learngene.models.specs import Spec
from ray_learngene.models.swapping import swapped


@dataclass(frozen=True)
class SubModel:
    """One of the models of a pass.

    Attributes:
        layers: The layers of the deepest model that it runs, in order.
        scale: Factor of its residual branches.
    """

    layers: tuple[int, ...]
    scale: float


def layers_among(blocks: Sequence[int], deepest: Sequence[int]) -> tuple[int, ...] | None:
    """Find the layers of the deepest model that have a model's blocks, in order; None if it lacks one.

    Args:
        blocks: The stored block of each layer.
        deepest: The same of the deepest model.
    """
    found: list[int] = []
    for block in blocks:
        later = (layer for layer in range(found[-1] + 1 if found else 0, len(deepest)) if deepest[layer] == block)
        if (layer := next(later, None)) is None:
            return None
        found.append(layer)
    return tuple(found)


def fits_one_pass(deepest: Spec, models: Sequence[SubModel]) -> bool:
    """Tell whether models run in one pass: timm's plain blocks, and a deeper one has all layers of a shallower one."""
    whole = meta_model(deepest)
    plain = isinstance(whole, VisionTransformer) and all(type(block) is Block for block in whole.blocks)
    layers = sorted((set(model.layers) for model in models), key=len)
    return plain and all(fewer <= more for fewer, more in pairwise(layers))


class OnePass:
    """The deepest of several models, of which each image of a batch runs a part.

    Args:
        deepest: Its size.
        models: Every n-th image goes to the same one, the first image to the first.
        drop_path: Stochastic depth rate of every model's last layer. It rises linearly over the model's own layers.
        checkpointed: Compute activations inside blocks again in the backward pass.
    """

    def __init__(
        self, deepest: Spec, models: Sequence[SubModel], drop_path: float = 0.0, *, checkpointed: bool = False
    ) -> None:
        self.deepest = deepest
        self.order = sorted(range(len(models)), key=lambda one: -len(models[one].layers))
        self.models = [models[one] for one in self.order]
        self.drop_path, self.checkpointed = drop_path, checkpointed

    def __call__(self, state: dict[str, Tensor], images: Tensor) -> Tensor:
        """Return logits `[B, classes]` of images `[B, *spec.image]`, in training.

        Args:
            state: State dict of the deepest model, its branches not scaled.
        """
        count, device = len(self.models), images.device
        parts = [torch.arange(len(images))[first::count] for first in self.order]
        sizes = torch.tensor([len(part) for part in parts])
        order = torch.cat(parts).to(device)
        model = _shared(self.deepest, self.checkpointed, str(device))
        exact = torch.promote_types(images.dtype, torch.float32)
        scales = torch.tensor([one.scale for one in self.models], dtype=exact).repeat_interleave(sizes).to(device)
        kept = self._kept().repeat_interleave(sizes, dim=1).to(device) if self.drop_path else None
        for layer, block in enumerate(model.blocks):
            seen = int(sizes[: sum(layer in one.layers for one in self.models)].sum())
            model.blocks.images[layer] = seen
            for branch in (block.drop_path1, block.drop_path2):
                branch.scale = scales[:seen, None, None]
                branch.kept = None if kept is None else kept[layer, :seen, None, None]
        with swapped(model, state):
            logits: Tensor = model(images[order])
        return logits[order.argsort()]

    def _kept(self) -> Tensor:
        """Return the probability that a branch is kept, `[layers, models]`."""
        kept = torch.ones(self.deepest.depth, len(self.models))
        for one, model in enumerate(self.models):
            rates = calculate_drop_path_rates(self.drop_path, len(model.layers))
            kept[list(model.layers), one] -= torch.tensor(rates)
        return kept


class _Layers(nn.Sequential):
    """Blocks that each run on the first `images[layer]` images of the batch."""

    def __init__(self, blocks: nn.Sequential) -> None:
        super().__init__(*blocks)
        self.images = [0] * len(blocks)

    def forward(self, x: Tensor) -> Tensor:
        waiting: list[Tensor] = []  # what later layers see again, the last first
        for block, images in zip(self, self.images, strict=True):
            if images > len(x):
                parts = [x]
                while sum(map(len, parts)) < images:
                    parts.append(waiting.pop())
                x = torch.cat(parts)
            if images < len(x):
                x, others = x.split([images, len(x) - images])
                waiting.append(others)
            x = block(x)
        return torch.cat([x, *reversed(waiting)])


class _Branch(nn.Module):
    """The end of a residual branch: every image has its own scale `[B, 1, 1]` and probability `kept` to use it."""

    scale: Tensor
    kept: Tensor | None

    def forward(self, x: Tensor) -> Tensor:
        scale = self.scale
        if self.kept is not None:
            scale = scale * torch.bernoulli(self.kept) / self.kept
        return (x * scale).to(x.dtype)


@lru_cache(maxsize=16)
def _shared(spec: Spec, checkpointed: bool, device: str) -> Any:
    """Build the spec's vision transformer on the meta device, with room for what differs between images."""
    with on_meta():
        model: Any = build(spec)
    model.train()
    for block in model.blocks:
        block.drop_path1, block.drop_path2 = _Branch(), _Branch()
    if checkpointed:
        checkpoint_blocks(model.blocks)
    model.blocks = _Layers(model.blocks)
    return model

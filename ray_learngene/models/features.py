"""Features of any timm model: maps of its last layer or of several, and the pooled or class vector."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

# `vector` `[B, C]`, and `map0`, `map1`, ... `[B, C, H, W]`, the last one of the last layer
Features = dict[str, Tensor]
Read = Callable[[nn.Module, Tensor], Features]
VECTOR = "vector"


@dataclass(frozen=True)
class FeatureReader:
    """Reads features of a timm model: `reader(model, images)`.

    Attributes:
        layers: Number of maps, evenly spaced over the model's layers (or its stages), the last layer's among them.
    """

    layers: int = 1

    def __call__(self, model: Any, images: Tensor) -> Features:
        last, maps = self._intermediates(model, images)
        vector = model.forward_head(last, pre_logits=True)
        if vector.ndim > 2:  # a model that does not pool
            vector = vector.mean(dim=1) if vector.ndim == 3 else vector.mean(dim=(2, 3))
        return {VECTOR: vector, **{f"map{index}": each for index, each in enumerate(maps)}}

    def _intermediates(self, model: Any, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        chosen = [max(0, round(len(model.feature_info) * (i + 1) / self.layers) - 1) for i in range(self.layers)]
        indices = sorted(set(chosen))
        try:
            last, maps = model.forward_intermediates(images, indices=indices, norm=True, output_fmt="NCHW")
        except AssertionError:  # a model whose last norm is not one of maps
            last, maps = model.forward_intermediates(images, indices=indices, output_fmt="NCHW")
        by_layer = dict(zip(indices, maps, strict=True))
        return last, [by_layer[layer] for layer in chosen]


def gives_features(model: nn.Module) -> bool:
    """Return whether timm gives feature maps of a model."""
    return all(hasattr(model, name) for name in ("forward_intermediates", "forward_head", "feature_info"))


@torch.no_grad()
def feature_shapes(model: nn.Module, read: Read, images: Tensor) -> dict[str, torch.Size]:
    """Return the shape of every feature of one image, without the batch dimension."""
    training = model.training
    features = read(model.eval(), images)
    model.train(training)
    return {name: each.shape[1:] for name, each in features.items()}


def readable(model: nn.Module) -> nn.Module:
    """Let `model(images, read)` return `read(model, images)`, inside the model's own call.

    ZeRO-3 gathers a module's parameters when the module is called. A model whose `forward` takes `read` stays as it is.
    """
    if "read" not in signature(type(model).forward).parameters:
        model.__class__ = _with_read(type(model))  # type: ignore[arg-type]  # classes are hashable
    return model


@cache
def _with_read(cls: type[nn.Module]) -> type[nn.Module]:
    def forward(self: nn.Module, images: Tensor, read: Read | None = None) -> Any:
        return cls.forward(self, images) if read is None else read(self, images)

    return type(cls.__name__, (cls,), {"forward": forward})

"""The preprocessing of a model's images."""

from __future__ import annotations

from typing import Any, Literal

import ray_learngene.torchvision_cpu  # noqa: F401  isort:skip  (before the first timm import)
from timm.data import resolve_model_data_config
from timm.models import get_model_input_config
from torch import nn

from ray_learngene.config import Config


class Preprocessing(Config):
    """How an image becomes a model's input; a descendant inherits it from its ancestry model."""

    image_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    crop_pct: float
    interpolation: Literal["bicubic", "bilinear", "nearest"]

    @classmethod
    def of(cls, model: nn.Module, **changes: Any) -> Preprocessing:
        """Return the preprocessing that timm resolves for a model, at its own input size; `changes` replace fields."""
        data = resolve_model_data_config(model)
        own = {
            "image_size": int(get_model_input_config(model)["input_size"][-1]),
            "mean": tuple(data["mean"]),
            "std": tuple(data["std"]),
            "crop_pct": data["crop_pct"],
            "interpolation": data["interpolation"],
        }
        return cls(**own | changes)

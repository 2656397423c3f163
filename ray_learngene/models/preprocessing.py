"""The preprocessing of a model's images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ray_learngene.torchvision_cpu  # noqa: F401  isort:skip  (before the first timm import)
from pydantic import Field, ValidationError
from timm.data import resolve_model_data_config
from timm.models import get_model_input_config
from torch import nn

from ray_learngene.config import Config
from ray_learngene.config.data import Interpolation
from ray_learngene.errors import UserError
from ray_learngene.progress import counted


class Preprocessing(Config):
    """How an image becomes a model's input; a descendant inherits it from its ancestry model."""

    image_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    crop_pct: float = Field(gt=0, le=1)
    interpolation: Interpolation

    @classmethod
    def of(
        cls, model: nn.Module, where: str, *, input_size: Sequence[int] | None = None, **settings: Any
    ) -> Preprocessing:
        """Return the preprocessing of a timm model for square RGB images.

        Args:
            where: What the model is called in a message.
            input_size: Channels, height and width; default: what the model was built for.
            settings: Fields that are decided otherwise.

        Raises:
            UserError: the model takes other images.
        """
        data = resolve_model_data_config(model)
        channels, height, width = input_size or get_model_input_config(model)["input_size"]
        if channels != 3 or height != width:
            raise UserError(
                f"{where} takes images of {counted(channels, 'channel')} and {height} x {width} pixels: "
                "here models of square RGB images "
                "are trained, measured and taken learngenes from; as a teacher (--ancestry) it can be used"
            )
        found = {
            "image_size": int(width),
            "mean": tuple(data["mean"]) * (3 if len(data["mean"]) == 1 else 1),
            "std": tuple(data["std"]) * (3 if len(data["std"]) == 1 else 1),
            "crop_pct": data["crop_pct"],
            "interpolation": data["interpolation"],
        }
        try:
            return cls(**{**found, **settings})
        except ValidationError as error:
            first = error.errors()[0]
            raise UserError(
                f"{where}: its {first['loc'][0]} is {str(first['input'])[:100]!r}: correct it in its config.json"
            ) from None

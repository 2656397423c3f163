"""The preprocessing of a model's images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import ray_learngene.models.timm_import  # noqa: F401  isort:skip  (before the first timm import)
from pydantic import Field, ValidationError, model_validator
from timm.data import resolve_model_data_config
from timm.models import get_model_input_config
from torch import nn

from ray_learngene.config.base import Config
from ray_learngene.config.data import Interpolation
from ray_learngene.config.image import RGB, ImageShape, Shape
from ray_learngene.errors import UserError
from ray_learngene.progress import counted


class Preprocessing(Config):
    """How an image becomes a model's input; a descendant inherits it from its ancestry model.

    Attributes:
        image_size: Shape of the images; stores hold its short form, a number for square RGB images.
        mean: One for each channel, as `std`.
    """

    image_size: Shape
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_pct: float = Field(gt=0, le=1)
    interpolation: Interpolation

    @model_validator(mode="after")
    def _per_channel(self) -> Preprocessing:
        for name in ("mean", "std"):
            if len(values := getattr(self, name)) != self.image_size.channels:
                raise ValueError(
                    f"{name} has {counted(len(values), 'value')} for {counted(self.image_size.channels, 'channel')}"
                )
        return self

    @property
    def mode(self) -> Literal["L", "RGB"]:
        """Pillow's mode of the images.

        Raises:
            UserError: image files are not read with so many channels.
        """
        if self.image_size.channels not in (1, RGB):
            raise UserError(
                f"image files are read as grey (1 channel) or RGB (3), not with {self.image_size.channels} channels: "
                "choose a model of 1 or 3 channels"
            )
        return "L" if self.image_size.channels == 1 else "RGB"

    @classmethod
    def of(
        cls, model: nn.Module, where: str, *, input_size: Sequence[int] | None = None, size: Any = None, **settings: Any
    ) -> Preprocessing:
        """Return the preprocessing of a timm model.

        Args:
            where: What the model is called in a message.
            input_size: Channels, height and width; default: what the model was built for.
            size: Height and width of a model of no fixed input size, such as 224 or 256x128.
            settings: Fields that are decided otherwise.

        Raises:
            UserError: the model's settings are none.
        """
        data = resolve_model_data_config(model)
        image = ImageShape.of(input_size or get_model_input_config(model)["input_size"]).changed(size)
        found = {
            "image_size": image,
            "mean": per_channel(data["mean"], image.channels),
            "std": per_channel(data["std"], image.channels),
            "crop_pct": data["crop_pct"],
            "interpolation": data["interpolation"],
        }
        try:
            return cls(**{**found, **settings})
        except ValidationError as error:
            first = error.errors()[0]
            what = first["msg"].removeprefix("Value error, ")
            if first["loc"]:
                what = f"its {first['loc'][0]} is {str(first['input'])[:100]!r}"
            raise UserError(f"{where}: {what}: correct it in its config.json") from None


def per_channel(values: Sequence[float], channels: int) -> tuple[float, ...]:
    """Return a mean or deviation for each channel: grey gets the average of RGB, and RGB the same thrice of grey."""
    if len(values) == channels:
        return tuple(values)
    if channels == 1:
        return (sum(values) / len(values),)
    return tuple(values) * channels if len(values) == 1 else tuple(values)

"""Preprocessing that a model expects of its images."""

from __future__ import annotations

from typing import Literal

from ray_learngene.config import Config


class Preprocessing(Config):
    """How an image becomes a model's input; a descendant inherits it from the ancestry model it goes back to."""

    image_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    crop_pct: float
    interpolation: Literal["bicubic", "bilinear", "nearest"]

"""Private parts of timm that this package uses. tests/data/test_timm_internals.py says what breaks without each.

timm may change these in any version: read the test before raising the version in requirements.txt.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image, ImageOps
from timm.data import Mixup, auto_augment
from timm.data.mixup import cutmix_bbox_and_lam
from timm.data.random_erasing import RandomErasing
from torch import Tensor

from ray_learngene.config.image import ImageShape

Box = tuple[int, int, int, int]


def mixing_parameters(mixup: Mixup, shape: tuple[int, int, int, int]) -> tuple[float, Box | None]:
    """Sample how timm mixes a pair of images: an image's own share, and cutmix's box (top, bottom, left, right)."""
    share, cut = mixup._params_per_batch()
    if not cut or share == 1.0:
        return float(share), None
    box, share = cutmix_bbox_and_lam(shape, share, correct_lam=mixup.correct_lam)
    top, bottom, left, right = map(int, box)
    return float(share), (top, bottom, left, right)


def erased(erasing: RandomErasing, image: ImageShape) -> Sequence[tuple[int, int, Tensor]]:
    """Sample what timm erases of an image: top, left and the noise `[C, height, width]` of each rectangle."""
    canvas = _Canvas(image)
    erasing(canvas)
    return canvas.rectangles


class _Canvas:
    """Stands for an image in timm's `RandomErasing`, and keeps what would be written into it."""

    dtype = torch.float32

    def __init__(self, image: ImageShape) -> None:
        self.image = image
        self.rectangles: list[tuple[int, int, Tensor]] = []

    def size(self) -> tuple[int, int, int]:
        return self.image

    def __setitem__(self, where: tuple[slice, slice, slice], noise: Tensor) -> None:
        self.rectangles.append((where[1].start, where[2].start, noise))


def mend_posterize() -> None:
    """Make timm's strongest posterize, of 0 bits, a black image, as it was before Pillow 13 refused to."""

    def posterize(image: Image.Image, bits: int, **_: Any) -> Image.Image:
        return ImageOps.posterize(image, min(bits, 8)) if bits > 0 else Image.new(image.mode, image.size)

    auto_augment.NAME_TO_OP.update(dict.fromkeys(("Posterize", "PosterizeIncreasing", "PosterizeOriginal"), posterize))

"""What is drawn at random for images, by timm, before any pixel is touched: rectangles to erase, pairs to mix."""

from __future__ import annotations

from typing import NamedTuple

import torch
from timm.data import Mixup
from timm.data.mixup import cutmix_bbox_and_lam
from timm.data.random_erasing import RandomErasing
from torch import Tensor

from ray_learngene.config import AugmentationConfig


class Patch(NamedTuple):
    """A rectangle that is erased, and the noise `[3, height, width]` that takes its place."""

    top: int
    left: int
    noise: Tensor


class Mix(NamedTuple):
    """How a pair is mixed; `share` is that of an image itself, in its labels and, without a box, in its pixels."""

    share: float
    box: tuple[int, int, int, int] | None  # exchanged pixels: top, bottom, left, right


class Erasing:
    """timm's random erasing of one image of a square size."""

    def __init__(self, probability: float, size: int) -> None:
        self.size = size
        self.erase = RandomErasing(probability, mode="pixel", device="cpu") if probability > 0 else None

    def draw(self) -> list[Patch]:
        if self.erase is None:
            return []
        canvas = _Canvas(self.size)
        self.erase(canvas)
        return canvas.patches


class _Canvas:
    """Stands for an image in timm's `RandomErasing`, and keeps what would be written into it."""

    dtype = torch.float32

    def __init__(self, side: int) -> None:
        self.side = side
        self.patches: list[Patch] = []

    def size(self) -> tuple[int, int, int]:
        return 3, self.side, self.side

    def __setitem__(self, where: tuple[slice, slice, slice], noise: Tensor) -> None:
        self.patches.append(Patch(where[1].start, where[2].start, noise))


class Mixing(Mixup):
    """timm's mixup and cutmix of one pair of images of a square size."""

    def __init__(self, augmentation: AugmentationConfig, size: int) -> None:
        super().__init__(
            mixup_alpha=augmentation.mixup,
            cutmix_alpha=augmentation.cutmix,
            prob=augmentation.mixup_prob,
            switch_prob=augmentation.mixup_switch_prob,
        )
        self.shape = 2, 3, size, size

    def draw(self) -> Mix:
        share, cut = self._params_per_batch()
        if not cut or share == 1.0:
            return Mix(float(share), None)
        box, share = cutmix_bbox_and_lam(self.shape, share, correct_lam=self.correct_lam)
        top, bottom, left, right = map(int, box)
        return Mix(float(share), (top, bottom, left, right))

"""What timm samples for images before any pixel is touched: rectangles to erase, pairs to mix."""

from __future__ import annotations

from typing import NamedTuple

from timm.data import Mixup
from timm.data.random_erasing import RandomErasing
from torch import Tensor

from ray_learngene.config import AugmentationConfig
from ray_learngene.config.image import ImageShape
from ray_learngene.data.timm_internals import erased, mixing_parameters


class Patch(NamedTuple):
    """A rectangle that is erased, and the noise `[C, height, width]` that takes its place."""

    top: int
    left: int
    noise: Tensor


class Mix(NamedTuple):
    """How a pair is mixed; `share` is that of an image itself, in its labels and, without a box, in its pixels."""

    share: float
    box: tuple[int, int, int, int] | None  # exchanged pixels: top, bottom, left, right


class Erasing:
    """timm's random erasing of one image."""

    def __init__(self, probability: float, image: ImageShape) -> None:
        self.image = image
        self.erase = RandomErasing(probability, mode="pixel", device="cpu") if probability > 0 else None

    def draw(self) -> list[Patch]:
        if self.erase is None:
            return []
        return [Patch(*rectangle) for rectangle in erased(self.erase, self.image)]


class Mixing(Mixup):
    """timm's mixup and cutmix of one pair of images."""

    def __init__(self, augmentation: AugmentationConfig, image: ImageShape) -> None:
        super().__init__(
            mixup_alpha=augmentation.mixup,
            cutmix_alpha=augmentation.cutmix,
            prob=augmentation.mixup_prob,
            switch_prob=augmentation.mixup_switch_prob,
        )
        self.shape = 2, *image

    def draw(self) -> Mix:
        return Mix(*mixing_parameters(self, self.shape))

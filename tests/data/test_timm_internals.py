"""What this package takes from timm's private parts. A test that fails says what a new version of timm breaks."""

from __future__ import annotations

import random

import numpy as np
import torch
from PIL import Image
from timm.data import Mixup, auto_augment
from timm.data.random_erasing import RandomErasing

from ray_learngene.config.image import ImageShape
from ray_learngene.data.timm_internals import erased, mend_posterize, mixing_parameters


def seed(number: int) -> None:
    random.seed(number)
    np.random.seed(number)
    torch.manual_seed(number)


def test_pairs_are_mixed_as_timm_mixes_them() -> None:
    """If this fails, mixup and cutmix no longer follow timm's recipe."""
    images, targets = torch.rand(2, 3, 8, 8), torch.tensor([0, 1])
    mixup = Mixup(mixup_alpha=0.8, cutmix_alpha=1.0, num_classes=2)
    for number in range(20):
        seed(number)
        share, box = mixing_parameters(mixup, (2, 3, 8, 8))
        seed(number)
        mixed, labels = mixup(images.clone(), targets)
        expected = images * share + images.flip(0) * (1 - share)
        if box is not None:
            top, bottom, left, right = box
            expected = images.clone()
            expected[:, :, top:bottom, left:right] = images.flip(0)[:, :, top:bottom, left:right]
        torch.testing.assert_close(mixed, expected)
        torch.testing.assert_close(labels[0, 0].item(), 0.95 * share + 0.05 * (1 - share), rtol=1e-5, atol=0)


def test_rectangles_are_those_that_timm_erases() -> None:
    """If this fails, random erasing no longer follows timm's recipe."""
    erasing = RandomErasing(1.0, mode="pixel", device="cpu")
    for number in range(10):
        seed(number)
        ((top, left, noise),) = erased(erasing, ImageShape.of(16))
        seed(number)
        image = erasing(torch.zeros(3, 16, 16))
        height, width = noise.shape[1:]
        assert torch.equal(image[:, top : top + height, left : left + width], noise)
        assert image.count_nonzero() == noise.count_nonzero()


def test_the_strongest_posterize_is_black() -> None:
    """If this fails, auto-augment ends training with an error of Pillow."""
    mend_posterize()
    white = Image.new("RGB", (2, 2), "white")
    assert {name for name in auto_augment.NAME_TO_OP if name.startswith("Posterize")} == {
        *("Posterize", "PosterizeIncreasing", "PosterizeOriginal")
    }
    assert auto_augment.NAME_TO_OP["Posterize"](white, 0).getextrema() == ((0, 0),) * 3

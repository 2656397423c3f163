"""timm's transforms for training and evaluation, as an `AugmentationConfig` asks for them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import numpy.typing as npt
from PIL import Image
from timm.data import create_transform
from torchvision.transforms import Compose, Grayscale

from ray_learngene.config import AugmentationConfig
from ray_learngene.config.image import ImageShape
from ray_learngene.data.timm_internals import mend_posterize
from ray_learngene.errors import UserError
from ray_learngene.models.preprocessing import Preprocessing

Transform = Callable[[Image.Image], npt.NDArray[np.uint8]]


def train_transform(image: ImageShape, mean: tuple[float, ...], augmentation: AugmentationConfig) -> Transform:
    """Random crop, flip and colour: an RGB image becomes pixels `[H, W, C]`.

    Args:
        mean: Of the normalisation to come; what auto-augmentation moves in from outside an image has this colour.

    Raises:
        UserError: timm does not know the auto-augment policy.
    """
    try:
        return _pixels(
            create_transform(
                image.size,
                is_training=True,
                use_prefetcher=True,
                scale=augmentation.scale,
                ratio=augmentation.ratio,
                hflip=augmentation.hflip,
                # None, as timm builds a jitter of strength 0 too, which costs time
                color_jitter=augmentation.color_jitter or None,  # type: ignore[arg-type]
                auto_augment=augmentation.auto_augment,
                interpolation=augmentation.interpolation,
                mean=mean,
            ),
            image,
        )
    except (AssertionError, KeyError, ValueError):
        raise UserError(
            f"--auto-augment {augmentation.auto_augment!r} is no policy of timm: write for example rand-m9-mstd0.5-inc1"
        ) from None


def eval_transform(preprocessing: Preprocessing, crop_mode: str = "center") -> Transform:
    """Resize and crop: an RGB image becomes pixels `[H, W, C]`."""
    return _pixels(
        create_transform(
            preprocessing.image_size.size,
            use_prefetcher=True,
            interpolation=preprocessing.interpolation,
            crop_pct=preprocessing.crop_pct,
            crop_mode=crop_mode,
        ),
        preprocessing.image_size,
    )


def _pixels(transform: Compose, image: ImageShape) -> Transform:
    """Return a transform of timm that begins with grey images where they have one channel, and ends with pixels.

    Its last step is left out, which makes a tensor of an image. Grey of RGB of grey is the same grey, so it is timm's
    image of `--in-chans 1`.
    """
    steps = [*transform.transforms[:-1], np.array]
    return Compose([Grayscale(), *steps, partial(np.expand_dims, axis=-1)] if image.channels == 1 else steps)


mend_posterize()

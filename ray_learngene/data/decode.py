"""From an opened image of any kind to an upright RGB one, and from Pillow's errors to one line that names the image."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from ray_learngene.errors import UserError, reason_of

# Cameras write odd tags; each would print a warning, and none of them is used here.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.TiffImagePlugin")

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def to_rgb(image: Image.Image) -> Image.Image:
    """Decode an opened image, turn it as its EXIF orientation says and convert it to RGB.

    Transparency is dropped, as timm's and torchvision's own readers do. 16-bit grey is scaled to 8 bits. Raises
    whatever Pillow raises for damaged files, and ValueError for pixels of unknown range; see `readable`.
    """
    image.load()
    if image.mode == "F":  # Pillow clips at 0 and 255, so that images from 0 to 1 would be black
        low, high = np.asarray(image).min(), np.asarray(image).max()
        if not 0 <= low <= high <= 255 or 0 < high <= 1:
            raise ValueError("float pixels that are not from 0 to 255: convert it to 8 or 16 bits")
    image = _upright(image)
    if image.mode.startswith("I"):
        # Pillow would clip at 255. Mode "I" has 32 bits, but most files that open in it (PGM) hold 16.
        grey = np.asarray(image).astype(np.int64)
        if grey.min() < 0 or grey.max() > 65535:
            raise ValueError("pixels below 0 or above 65535: convert it to 8 or 16 bits")
        image = Image.fromarray(((grey + 128) // 257).astype(np.uint8))
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # directly to RGB, Pillow warns
    return image if image.mode == "RGB" else image.convert("RGB")


def _upright(image: Image.Image) -> Image.Image:
    """Turn an image as its EXIF orientation says.

    `ImageOps.exif_transpose` also writes all other tags again, and fails on one that it cannot write.
    """
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
        turn = _UPRIGHT.get(orientation)
    except Exception:  # damaged EXIF says nothing about the pixels, which are read
        return image
    return image if turn is None else image.transpose(turn)


@contextmanager
def readable(describe: Callable[[], str]) -> Iterator[None]:
    """Turn whatever Pillow raises inside into a UserError that names the image."""
    try:
        yield
    except UserError:
        raise
    except UnidentifiedImageError:  # its own message is the address of a buffer
        raise UserError(f"cannot read image {describe()}: not an image; remove or replace it") from None
    except Exception as error:  # Pillow's plugins raise nearly every type on damaged files
        raise UserError(f"cannot read image {describe()}: {reason_of(error)}; remove or replace it") from None

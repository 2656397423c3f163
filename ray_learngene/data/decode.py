"""From an opened image of any kind to an upright RGB one, and from Pillow's errors to one line that names the image."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ray_learngene.errors import UserError


def to_rgb(image: Image.Image) -> Image.Image:
    """Decode an opened image, turn it as its EXIF orientation says and convert it to RGB.

    Transparency is dropped, as timm's and torchvision's own readers do. 16-bit grey is scaled to 8 bits. Raises
    whatever Pillow raises for damaged files, and ValueError for pixels whose range nobody knows; see `readable`.
    """
    image.load()
    if image.mode == "F":  # Pillow clips at 0 and 255, so that images from 0 to 1 would be black
        low, high = np.asarray(image).min(), np.asarray(image).max()
        if not 0 <= low <= high <= 255 or 0 < high <= 1:
            raise ValueError("float pixels that are not from 0 to 255: convert it to 8 or 16 bits")
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode.startswith("I"):
        # Pillow would clip at 255. Mode "I" has 32 bits, but most files that open in it (PGM) hold 16.
        grey = np.asarray(image).astype(np.int64)
        if grey.min() < 0 or grey.max() > 65535:
            raise ValueError("pixels below 0 or above 65535: convert it to 8 or 16 bits")
        image = Image.fromarray(((grey + 128) // 257).astype(np.uint8))
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # directly to RGB, Pillow warns
    return image if image.mode == "RGB" else image.convert("RGB")


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
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"cannot read image {describe()}: {reason}; remove or replace it") from None

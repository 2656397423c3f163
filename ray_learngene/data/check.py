"""Check before training that the images of a set can be read, and name all that cannot."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from PIL import Image

from ray_learngene.data.decode import readable, to_rgb
from ray_learngene.data.image_set import ImageSet
from ray_learngene.errors import UserError
from ray_learngene.progress import Progress, counted

_FULL_CHECK_IMAGES = 10_000
_CHUNK = 512
_NAMED = 5


class ImageFacts(NamedTuple):
    """What an image is like; `complaint` says why it cannot be read."""

    complaint: str | None
    size: tuple[int, int] = (0, 0)
    mode: str = ""
    frames: int = 1
    transparent: bool = False
    digest: bytes = b""  # of the decoded pixels; empty where only the header was read


def is_full(mode: str, images: int) -> bool:
    """Return whether a check of so many images decodes them all."""
    return mode == "full" or (mode == "auto" and images <= _FULL_CHECK_IMAGES)


def image_facts(image_set: ImageSet, mode: str) -> Iterator[ImageFacts]:
    """Read every image of a set, in its order.

    Args:
        mode: `full` decodes every image, `headers` reads only their headers, `auto` is full up to 10,000 images and
            headers above.
    """
    full = is_full(mode, len(image_set))

    def facts(index: int) -> ImageFacts:
        try:
            with readable(lambda: image_set.describe(index)), image_set.open(index) as image:
                digest = b""
                # Only pixels tell whether the range of these modes is one that training reads.
                if full or image.mode == "F" or image.mode.startswith("I"):
                    digest = hashlib.blake2b(to_rgb(image).tobytes(), digest_size=16).digest()
                transparent = image.has_transparency_data
                return ImageFacts(None, image.size, image.mode, _frames(image), transparent, digest if full else b"")
        except UserError as error:
            return ImageFacts(str(error))

    progress = Progress("check", len(image_set), "images")
    with progress, ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:
        for start in range(0, len(image_set), _CHUNK):
            for each in threads.map(facts, range(start, min(start + _CHUNK, len(image_set)))):
                progress.advance()
                yield each


def _frames(image: Image.Image) -> int:
    try:
        return 1 if image.format == "MPO" else getattr(image, "n_frames", 1)  # a phone's photo with its preview
    except Exception:  # later frames are damaged, and are never read
        return 1


def check_images(image_set: ImageSet, mode: str) -> None:
    """Read every image of a set.

    Args:
        mode: As of `image_facts`; `off` does nothing.

    Raises:
        UnreadableImages: one or more cannot be read; counts them and names the first few.
    """
    if mode == "off":
        return
    complaints = [facts.complaint for facts in image_facts(image_set, mode) if facts.complaint]
    if complaints:
        raise UnreadableImages(complaints, len(image_set))


class UnreadableImages(UserError):
    """Some images of a set cannot be read."""

    def __init__(self, complaints: list[str], images: int) -> None:
        super().__init__(_one_line(complaints, images))
        self.readable = images - len(complaints)


def _one_line(complaints: list[str], images: int) -> str:
    if len(complaints) == 1:
        return complaints[0]
    named = "; ".join(text.removeprefix("cannot read image ").partition("; ")[0] for text in complaints[:_NAMED])
    more = f"; and {len(complaints) - _NAMED} more" if len(complaints) > _NAMED else ""
    return f"{len(complaints)} of {counted(images, 'image')} cannot be read: {named}{more}; remove or replace them"

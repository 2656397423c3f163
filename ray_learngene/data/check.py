"""Check before training that the images of a set can be read, and name all that cannot."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from ray_learngene.data.decode import readable
from ray_learngene.data.image_set import ImageSet
from ray_learngene.errors import UserError

_FULL_CHECK_IMAGES = 10_000
_CHUNK = 512
_NAMED = 5


def check_images(image_set: ImageSet, mode: str, progress: Callable[[int, int], None] | None = None) -> None:
    """Read every image of a set.

    Args:
        mode: `full` decodes every image, `headers` reads only their headers, `auto` is full up to 10,000 images and
            headers above, `off` does nothing.
        progress: Called with the number of images checked so far and of all images.

    Raises:
        UserError: one or more cannot be read; counts them and names the first few.
    """
    if mode == "off":
        return
    full = mode == "full" or (mode == "auto" and len(image_set) <= _FULL_CHECK_IMAGES)

    def complaint(index: int) -> str | None:
        try:
            if full:
                image_set.image(index)
            else:
                with readable(lambda: image_set.describe(index)), image_set.open(index):
                    pass
        except UserError as error:
            return str(error)
        return None

    complaints: list[str] = []
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:
        for start in range(0, len(image_set), _CHUNK):
            chunk = range(start, min(start + _CHUNK, len(image_set)))
            complaints += filter(None, threads.map(complaint, chunk))
            if progress is not None:
                progress(chunk.stop, len(image_set))
    if len(complaints) == 1:
        raise UserError(complaints[0])
    if complaints:
        named = "; ".join(text.removeprefix("cannot read image ").partition("; ")[0] for text in complaints[:_NAMED])
        more = f"; and {len(complaints) - _NAMED} more" if len(complaints) > _NAMED else ""
        raise UserError(
            f"{len(complaints)} of {len(image_set)} images cannot be read: {named}{more}; remove or replace them"
        )

"""An image that cannot be read in the middle of training: an error that names it, or another image in its place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from PIL import Image

from ray_learngene.data.image_set import ImageSet
from ray_learngene.errors import UserError
from ray_learngene.progress import counted

Policy = Literal["fail", "skip"]


class Reader:
    """Reads the images of a set and remembers which it could not.

    What it remembers is shared with the loader's processes. Pickled, it is empty: another worker remembers its own.
    """

    def __init__(self, images: ImageSet, policy: Policy = "fail") -> None:
        self.images, self.policy = images, policy
        self.unreadable = torch.zeros(len(images) if policy == "skip" else 0, dtype=torch.bool).share_memory_()

    def __reduce__(self) -> tuple[type[Reader], tuple[ImageSet, Policy]]:
        return Reader, (self.images, self.policy)

    def image(self, index: int) -> tuple[Image.Image, int] | None:
        """Return the image and its label; None where it cannot be read and the policy is to skip it.

        Raises:
            UserError: it cannot be read and the policy is to fail; names it.
        """
        if self.policy == "skip" and self.unreadable[index]:
            return None
        try:
            return self.images.image(index), int(self.images.labels[index])
        except UserError as error:
            if self.policy == "fail":
                raise UserError(f"{error}, or go on without it: --unreadable skip") from None
            self.unreadable[index] = True
            return None

    def image_or_next(self, index: int) -> tuple[Image.Image, int]:
        """Return the image and its label, or those of the next one in the set that can be read.

        It is the same image for all workers.

        Raises:
            UserError: see `image`, or no image of the set can be read.
        """
        for number in range(len(self.images)):
            found = self.image((index + number) % len(self.images))
            if found is not None:
                return found
        raise UserError(none_readable(len(self.images)))

    def names(self) -> list[str]:
        """Return what could not be read so far, in this process and its loader's."""
        return [self.images.describe_inside(index) for index in self.unreadable.nonzero().flatten().tolist()]


def none_readable(images: int) -> str:
    """Return one line about a set of which nothing can be read."""
    return f"none of the {images} images can be read: check the image set with `data check`"


def unreadable_text(names: Sequence[str]) -> str:
    """Return one line about the images that could not be read and were skipped."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"skipped {counted(len(names), 'unreadable image')}: {', '.join(names[:3])}{more}"

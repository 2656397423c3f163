"""The shape of a model's images: channels, height and width, as timm's `input_size`.

Its short form is `224` for square RGB images, `256x128` for RGB images of that height and width, and `1x28x28` with
channels. Stores hold the short form: a number for square RGB images, a text for all others.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple

from pydantic import BeforeValidator, Field, PlainSerializer

from ray_learngene.progress import counted

_MOST = 16_384  # pixels of a side; position embeddings of larger images alone take gigabytes
RGB = 3


class ImageShape(NamedTuple):
    """Channels, height and width of images."""

    channels: int
    height: int
    width: int

    @classmethod
    def of(cls, value: Any) -> ImageShape:
        """Read a shape in its short form, or as a sequence of (channels,) height and width.

        Raises:
            ValueError: it is none.
        """
        numbers = _numbers(value)
        if len(numbers) == 1:
            numbers *= 2
        if len(numbers) == 2:
            numbers = (RGB, *numbers)
        if len(numbers) != 3 or not all(1 <= number <= _MOST for number in numbers):
            raise ValueError("write pixels as in 224, height x width as in 256x128, or with channels as in 1x28x28")
        return cls(*numbers)

    def changed(self, size: Any = None, channels: int | None = None) -> ImageShape:
        """Return the shape of another size, with these channels unless `size` or `channels` says others."""
        if size is None:
            found = self
        elif isinstance(size, ImageShape) or len(_numbers(size)) == 3:
            found = ImageShape.of(size)
        else:
            found = ImageShape.of(size)._replace(channels=self.channels)
        return found if channels is None else found._replace(channels=channels)

    @property
    def sides(self) -> tuple[int, int]:
        """Height and width."""
        return self.height, self.width

    @property
    def size(self) -> int | tuple[int, int]:
        """The side of a square, or height and width: timm's `img_size`."""
        return self.width if self.height == self.width else self.sides

    @property
    def pixels(self) -> int:
        return math.prod(self.sides)

    @property
    def plain(self) -> int | str:
        """The short form, as stores hold it."""
        text = str(self)
        return int(text) if text.isdecimal() else text

    @property
    def words(self) -> str:
        """The shape as messages and cards state it, such as `224 px`, `256x128 px` and `28 px grey`."""
        channels = {1: " grey", RGB: ""}.get(self.channels, f" of {counted(self.channels, 'channel')}")
        return f"{self.sides_text} px{channels}"

    @property
    def sides_text(self) -> str:
        """Height and width, as `--image-size` takes them."""
        return str(self.width) if self.height == self.width else f"{self.height}x{self.width}"

    def multiple(self, of: int, *, larger: bool) -> ImageShape:
        """Return the next larger or smaller shape whose sides are multiples of a number, and no less than it."""
        sides = (-(-side // of) if larger else max(1, side // of) for side in self.sides)
        return ImageShape(self.channels, *(of * side for side in sides))

    def __str__(self) -> str:
        if self.channels != RGB:
            return "x".join(map(str, self))
        return self.sides_text


def shape_words(value: Any) -> str | None:
    """Return the shape that a store holds in words; None if it is none."""
    try:
        return ImageShape.of(value).words
    except ValueError:
        return None


def _numbers(value: Any) -> tuple[int, ...]:
    """Return the numbers of a shape or of a part of one; empty for anything else."""
    parts = re.split("[x×]", value) if isinstance(value, str) else value
    parts = list(parts) if isinstance(parts, Sequence) else [parts]
    whole = [str(part).strip() for part in parts if not isinstance(part, bool | float)]
    return tuple(map(int, whole)) if len(whole) == len(parts) and all(_NUMBER.fullmatch(each) for each in whole) else ()


_NUMBER = re.compile("[0-9]{1,8}")


def _sides(value: Any) -> Any:
    """Read `224` as a number, `256x128` as height and width."""
    if value is None:
        return None
    numbers = _numbers(value)
    if any(number > _MOST for number in numbers):
        raise ValueError(f"a side has {_MOST:,} px at most")
    if len(numbers) not in (1, 2) or not all(number >= 1 for number in numbers):
        raise ValueError("give pixels as in 224, or height x width as in 256x128")
    return ImageShape.of(numbers).size


def _channels(value: Any) -> Any:
    """Check that image files can be read with so many channels."""
    if value is None:
        return None
    if str(value).strip() not in ("1", "3"):
        raise ValueError("image files are read as grey (1) or RGB (3): give one of these")
    return int(value)


# a shape as a field of a spec or a model's preprocessing; the settings that give one
Shape = Annotated[
    ImageShape, BeforeValidator(ImageShape.of), PlainSerializer(lambda shape: shape.plain, return_type=int | str)
]
ImageSize = Annotated[
    Annotated[int, Field(ge=1)] | tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]] | None,
    BeforeValidator(_sides),
]
Channels = Annotated[int | None, BeforeValidator(_channels)]

"""The sizes of one architecture that a user names by depths and widths."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ray_learngene.errors import UserError
from ray_learngene.models.specs import Spec, first_message


def parse_numbers(flag: str, text: str) -> list[int]:
    """`6-15` or `4,6,8` or a mix, as sorted distinct numbers.

    Raises:
        UserError: the text is neither.
    """
    numbers: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
        if not 1 <= first <= last <= 100_000 or last - first > 1000:
            raise UserError(f"--{flag} {text}: cannot read {part.strip()!r}; write 6-15 or 4,6,8 (from 1 up)")
        numbers.update(range(first, last + 1))
    return sorted(numbers)


def sizes_of(
    source: Spec,
    *,
    depths: str | None = None,
    widths: str | None = None,
    changes: Mapping[str, Any] | None = None,
) -> list[Spec]:
    """Specs of every width and depth, by default of depths 1 to the source's and of its width.

    Heads grow with the width, at the source's head size.

    Args:
        changes: Other fields of the spec, such as `classes` and `image`; None keeps the source's.

    Raises:
        UserError: a text cannot be read, or a size does not fit the head size or the patches.
    """
    many_depths = parse_numbers("depths", depths) if depths else list(range(1, source.depth + 1))
    many_widths = parse_numbers("widths", widths) if widths else [source.width]
    head_size = source.width // source.heads
    odd = next((width for width in many_widths if width % head_size), None)
    if odd:
        raise UserError(f"--widths {widths}: {odd} is not a multiple of the learngene's head size, {head_size}")
    given = {name: value for name, value in (changes or {}).items() if value is not None}
    try:
        return [
            source.replace(depth=depth, width=width, heads=width // head_size, **given)
            for width in many_widths
            for depth in many_depths
        ]
    except ValueError as error:
        raise UserError(f"--image-size {given.get('image')}: {first_message(error)}") from None


def size_name(spec: Spec) -> str:
    """A short name of a size among those of one architecture, as names of descendants hold it."""
    return f"w{spec.width}-d{spec.depth:02d}"

"""The named sizes of auxiliary models, as plain numbers: `--help` shows them without torch."""

from __future__ import annotations

from typing import NamedTuple


class Preset(NamedTuple):
    """The size of a vision transformer; its patches and images are square, in pixels."""

    width: int
    depth: int
    heads: int
    image: int
    patch: int
    classes: int


# Depth is that of the auxiliary model in the SWS paper ([3,3,4,3,3]); heads of 64 in the paper's sizes.
PRESET_SIZES = {
    "ti": Preset(width=192, depth=16, heads=3, image=224, patch=16, classes=1000),
    "s": Preset(width=384, depth=16, heads=6, image=224, patch=16, classes=1000),
    "b": Preset(width=768, depth=16, heads=12, image=224, patch=16, classes=1000),
    "micro": Preset(width=128, depth=16, heads=4, image=32, patch=4, classes=10),
    "pico": Preset(width=64, depth=16, heads=4, image=32, patch=8, classes=10),
    "nano": Preset(width=48, depth=16, heads=3, image=8, patch=2, classes=10),
}
PRESET_NAMES = ", ".join(PRESET_SIZES)


def preset_table() -> list[str]:
    """Return the presets as lines of aligned columns; classes follow from the images."""
    rows = [("preset", "width", "heads", "depth", "patch", "image size")]
    rows += [
        (name, str(size.width), str(size.heads), str(size.depth), str(size.patch), str(size.image))
        for name, size in PRESET_SIZES.items()
    ]
    first, *others = (max(map(len, column)) for column in zip(*rows, strict=True))
    return [
        "  ".join([name.ljust(first), *(text.rjust(width) for text, width in zip(numbers, others, strict=True))])
        for name, *numbers in rows
    ]

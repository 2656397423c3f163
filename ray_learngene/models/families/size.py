"""The size of a timm model, stage by stage, and how it changes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from ray_learngene.errors import UserError
from ray_learngene.progress import counted


@dataclass(frozen=True)
class Size:
    """The size of a model, with one number per stage; a model without stages has one."""

    depths: tuple[int, ...]
    widths: tuple[int, ...]
    heads: tuple[int, ...]
    mlp_ratio: float | None
    image: tuple[int, int] | None  # height and width
    patch: int


def resized(size: Size, **changes: Any) -> Size:
    """Change a size by `depth`, `depths`, `width`, `widths`, `heads`, `image`, `patch` or `mlp_ratio`.

    A total depth is spread over the stages in proportion; a width is the first stage's, and the others follow. Heads
    follow the width at the present head size.

    Raises:
        UserError: a stage cannot have that depth or width.
    """
    depths, widths = changes.get("depths"), changes.get("widths")
    if depths is None and "depth" in changes:
        depths = spread(changes["depth"], size.depths)
    if depths is not None and len(depths) != len(size.depths):
        raise UserError(
            f"depth {_text(depths)}: this architecture has {counted(len(size.depths), 'stage')}, not {len(depths)}"
        )
    if widths is None and "width" in changes and size.widths:
        first = size.widths[0]
        odd = [width for width in size.widths if width * changes["width"] % first]
        if odd:
            factor = f"{changes['width']}/{first}"
            raise UserError(f"width {changes['width']}: a stage of width {odd[0]} cannot be scaled by {factor}")
        widths = tuple(width * changes["width"] // first for width in size.widths)
    if widths is not None and len(widths) != len(size.widths):
        raise UserError(
            f"width {_text(widths)}: this architecture has {counted(len(size.widths), 'width')}, not {len(widths)}"
        )
    heads = size.heads
    if "heads" in changes and len(heads) == 1:
        heads = (changes["heads"],)
    elif widths is not None and heads:
        heads = tuple(_heads(new, old, count) for new, old, count in zip(widths, size.widths, heads, strict=False))
    return replace(
        size,
        depths=tuple(depths or size.depths),
        widths=tuple(widths or size.widths),
        heads=heads,
        image=changes.get("image", size.image) if size.image else None,
        patch=changes.get("patch", size.patch),
        mlp_ratio=changes.get("mlp_ratio", size.mlp_ratio) if size.mlp_ratio else None,
    )


def _heads(width: int, before: int, heads: int) -> int:
    """Count the heads of a stage at another width, at its present head size."""
    if width * heads % before:
        raise UserError(f"width {width} is not a multiple of the head size, {before // heads}")
    return width * heads // before


def spread(depth: int, depths: Sequence[int]) -> tuple[int, ...]:
    """Spread a total depth over stages in proportion to theirs; each stage gets one block at least.

    Raises:
        UserError: there are fewer blocks than stages.
    """
    if depth < len(depths):
        raise UserError(
            f"depth {depth}: this architecture has {counted(len(depths), 'stage')}, each of one block at least"
        )
    found = [1] * len(depths)
    for _ in range(depth - len(depths)):
        shares = [depth * have / sum(depths) - now for have, now in zip(depths, found, strict=True)]
        found[shares.index(max(shares))] += 1
    return tuple(found)


def _text(numbers: Sequence[int]) -> str:
    return "-".join(map(str, numbers))

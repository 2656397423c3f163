"""The interface of a family: how its timm entry points take a size, and what axes of parameters mean.

A model of any family is a timm entry point with keyword arguments. The family says which keywords make its size.
Everything else follows from models that are built on the meta device; see `layout.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch

from ray_learngene.models.families.made import DEPTHS, Arguments
from ray_learngene.models.families.size import Size


class Family:
    """How the models of some timm classes are sized, and what their parameters' axes mean.

    The defaults suit most of timm's classes, which need no subclass. The first keyword that a class has counts.
    """

    classes: ClassVar[tuple[str, ...]] = ()  # names of timm's model classes
    depth: ClassVar[tuple[str, ...]] = DEPTHS
    width: ClassVar[tuple[str, ...]] = ("embed_dim", "embed_dims", "dims", "widths", "base_dim", "dim")
    heads: ClassVar[tuple[str, ...]] = ("num_heads",)
    doubles: ClassVar[bool] = False  # the width is that of the first stage and doubles with every stage
    per_block: ClassVar[tuple[str, ...]] = ()  # keywords with a number of heads for every block, if they are lists
    # the last parameters of a block's residual branches: scaling them scales the branch
    branch_ends: ClassVar[tuple[str, ...]] = ("attn.proj.weight", "attn.proj.bias", "mlp.fc2.weight", "mlp.fc2.bias")
    whole_heads: ClassVar[bool] = False  # channels within a head have positions: heads are kept or dropped whole

    def groups(self, name: str, dim: int, shapes: Mapping[str, torch.Size]) -> int:
        """Count the equal parts that an axis concatenates, such as query, key and value.

        Args:
            name: Parameter.
            dim: Its axis.
            shapes: Shapes of all parameters and buffers by name.
        """
        module, _, _ = name.rpartition(".")
        kind = module.rpartition(".")[2]
        if dim == 0 and kind in ("qkv", "kv"):
            return len(kind)
        after = shapes.get(f"{module.removesuffix('fc1')}fc2.weight")
        if dim == 0 and kind == "fc1" and after and shapes[name][0] == 2 * after[1]:
            return 2  # a packed gated MLP
        return 1

    # Sizes.

    def keyword(self, kind: str, made: Mapping[str, Any]) -> str | None:
        """Return the keyword for `depth`, `width` or `heads` among a constructor's arguments."""
        return next((name for name in getattr(self, kind) if made.get(name) is not None), None)

    def fixed(self, made: Mapping[str, Any]) -> bool:
        """Tell whether no keyword sets the depth of the model with these constructor arguments."""
        depth = self.keyword("depth", made)
        return not depth or not _numbers(made[depth])

    def size(self, made: Mapping[str, Any]) -> Size:
        """Read the size from constructor arguments; a model of fixed depth is one block of a width that stays."""
        image, patch = _sides(made.get("img_size")), _side(made.get("patch_size")) or 1
        if self.fixed(made):
            return Size((1,), (), (), None, image, patch)
        depth, width, heads = (self.keyword(kind, made) for kind in ("depth", "width", "heads"))
        depths = _numbers(made[depth]) if depth else None
        assert depths
        widths = (_numbers(made[width]) if width else None) or ()
        if self.doubles and len(widths) == 1:
            widths = tuple(widths[0] * 2**stage for stage in range(len(depths)))
        ratio = made.get("mlp_ratio")
        return Size(
            depths,
            widths,
            (_numbers(made[heads]) if heads else None) or (),
            float(ratio) if isinstance(ratio, int | float) else None,
            image,
            patch,
        )

    def arguments(self, made: Mapping[str, Any], size: Size) -> Arguments:
        """Return the keywords that make a model of another size from one with these constructor arguments."""
        have = self.size(made)
        pairs: list[tuple[str | None, Any, Any]] = [
            (self.keyword("depth", made), have.depths, size.depths),
            (self.keyword("width", made), have.widths, size.widths),
            (self.keyword("heads", made), have.heads, size.heads),
            ("mlp_ratio", have.mlp_ratio, size.mlp_ratio),
        ]
        sides = {"img_size": (have.image, size.image), "patch_size": (have.patch, size.patch)}
        return {
            **{
                name: after if name == "patch_size" else _img_size(after)
                for name, (before, after) in sides.items()
                if after != before and made.get(name) is not None
            },
            **{
                name: _like(made[name], after)
                for name, before, after in pairs
                if name is not None and after != before and made.get(name) is not None
            },
        }

    def block_arguments(self, made: Mapping[str, Any], present: Mapping[str, Any], size: Size) -> Arguments:
        """Return the keywords of `per_block` for another size that differ from those of `made`.

        Args:
            present: Arguments of the constructor at the present size.
        """
        have = self.size(present)
        lists = {name: present[name] for name in self.per_block if isinstance(present.get(name), Sequence)}
        found = {name: _per_block(heads, have, size) for name, heads in lists.items()}
        return {name: heads for name, heads in found.items() if heads != list(made[name])}


def _numbers(value: Any) -> tuple[int, ...] | None:
    """Return a number or a list of numbers as a tuple; None for anything else."""
    values = value if isinstance(value, Sequence) and not isinstance(value, str) else (value,)
    return tuple(values) if all(type(each) is int for each in values) else None


def _per_block(heads: Sequence[int], have: Size, size: Size) -> list[int]:
    """Return the heads of every block at another depth and number of heads; blocks count from the nearer end."""
    depth, before = sum(size.depths), len(heads)
    places = [
        min(i, before // 2) if i < depth / 2 else before - min(depth - i, (before + 1) // 2) for i in range(depth)
    ]
    return [heads[place] * size.heads[0] // have.heads[0] for place in places]


def _side(value: Any) -> int | None:
    """Return the side of a square image or patch; None if there is none or it is no square."""
    sides = set(_numbers(value) or ()) if value is not None else set()
    return sides.pop() if len(sides) == 1 else None


def _sides(value: Any) -> tuple[int, int] | None:
    """Return the height and width of an image; None if there are none."""
    sides = _numbers(value) if value is not None else None
    return (sides[0], sides[-1]) if sides and len(sides) in (1, 2) else None


def _img_size(sides: Any) -> Any:
    """Return height and width as timm's `img_size`: a number if they are equal."""
    return sides[0] if sides is None or sides[0] == sides[1] else list(sides)


def _like(example: Any, value: Any) -> Any:
    """Return a number or numbers in the form of a keyword's present value."""
    if isinstance(example, Sequence):
        return list(value) if isinstance(value, tuple) else [value] * len(example)
    return value[0] if isinstance(value, tuple) else value

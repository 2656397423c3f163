"""The interface of a family, and the size of a model as its timm entry point takes it.

A model of any family is a timm entry point with keyword arguments. The family says which keywords make its size.
Everything else follows from models that are built on the meta device; see `layout.py`.
"""

from __future__ import annotations

import inspect
import json
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, is_dataclass, replace
from functools import lru_cache
from typing import Any, ClassVar

import timm
import torch
from timm.models import build_model_with_cfg
from torch import nn

from ray_learngene.errors import UserError, did_you_mean, reason_of
from ray_learngene.models.meta import on_meta
from ray_learngene.progress import counted

Arguments = dict[str, Any]


@dataclass(frozen=True)
class Size:
    """The size of a model, with one number per stage; a model without stages has one."""

    depths: tuple[int, ...]
    widths: tuple[int, ...]
    heads: tuple[int, ...]
    mlp_ratio: float | None
    image: tuple[int, int] | None  # height and width
    patch: int


class Family:
    """How the models of some timm classes are sized, and what their parameters' axes mean.

    The defaults suit most of timm's classes, which need no subclass. The first keyword that a class has counts.
    """

    classes: ClassVar[tuple[str, ...]] = ()  # names of timm's model classes
    depth: ClassVar[tuple[str, ...]] = ("depth", "depths", "layers", "stages", "num_blocks", "serial_depths")
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

    def size(self, made: Mapping[str, Any]) -> Size | None:
        """Read the size from constructor arguments; None if no keyword sets the depth."""
        depth, width, heads = (self.keyword(kind, made) for kind in ("depth", "width", "heads"))
        depths = _numbers(made[depth]) if depth else None
        if not depths:
            return None
        widths = (_numbers(made[width]) if width else None) or ()
        if self.doubles and len(widths) == 1:
            widths = tuple(widths[0] * 2**stage for stage in range(len(depths)))
        ratio = made.get("mlp_ratio")
        return Size(
            depths,
            widths,
            (_numbers(made[heads]) if heads else None) or (),
            float(ratio) if isinstance(ratio, int | float) else None,
            _sides(made.get("img_size")),
            _side(made.get("patch_size")) or 1,
        )

    def arguments(self, made: Mapping[str, Any], size: Size) -> Arguments:
        """Return the keywords that make a model of another size from one with these constructor arguments."""
        have = self.size(made)
        assert have is not None
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
        assert have is not None
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


# Entry points.


@dataclass(frozen=True)
class Made:
    """A timm model that was built on the meta device, and the arguments that its constructor got."""

    model: nn.Module
    arguments: Arguments


def made(architecture: str, arguments: Mapping[str, Any]) -> Made:
    """Build a model on the meta device and read its constructor's arguments, defaults included; cached.

    Raises:
        UserError: timm has no such entry point, or refuses the arguments.
    """
    if not timm.is_model(architecture):
        near = did_you_mean(architecture, timm.list_models(), most=3)
        raise UserError(f"timm has no architecture {architecture!r}{near}")
    try:
        return _made(architecture, json.dumps(arguments, sort_keys=True))
    except Exception as error:  # timm's classes raise what their arithmetic happens to raise, StopIteration too
        given = ", ".join(f"{name}={value}" for name, value in arguments.items())
        own = _own(architecture, arguments)
        raise UserError(f"{architecture} ({given}): timm refuses this size: {reason_of(error, 200)}{own}") from None


def _own(architecture: str, arguments: Mapping[str, Any]) -> str:
    """Say what an entry point has by itself for the keywords of a size that timm refuses."""
    try:
        own = _made(architecture, "{}").arguments
    except Exception:  # timm cannot build it at all
        return ""
    known = [f"{name}={own[name]}" for name in arguments if own.get(name) is not None and name != "num_classes"]
    return f"; its own is {', '.join(known)}" if known else ""


@lru_cache(maxsize=512)
def _made(architecture: str, text: str) -> Made:
    with _recorded() as calls, on_meta():
        model = timm.create_model(architecture, **json.loads(text))
    given: Arguments = next((given for built, given in calls if built is model), {})
    found = {**_defaults(type(model)), **given}
    settings = found.get("cfg")
    if is_dataclass(settings):  # some classes take their size as one object, and its fields as keywords
        found = {**vars(settings), **found}
    return Made(model, found)


_lock = threading.Lock()  # `_recorded` changes timm's modules for a moment


@contextmanager
def _recorded() -> Iterator[list[tuple[nn.Module, Arguments]]]:
    """Record the models that timm's builder makes, each with the arguments of its constructor."""
    calls: list[tuple[nn.Module, Arguments]] = []

    def build(model_cls: Callable[..., nn.Module], *args: Any, **kwargs: Any) -> nn.Module:
        def construct(**given: Any) -> nn.Module:
            model = model_cls(**given)
            calls.append((model, given))
            return model

        made: nn.Module = build_model_with_cfg(construct, *args, **kwargs)
        return made

    with _lock:
        users = [module for name, module in sys.modules.items() if name.startswith("timm.models.")]
        users = [module for module in users if vars(module).get("build_model_with_cfg") is build_model_with_cfg]
        for module in users:
            module.build_model_with_cfg = build  # type: ignore[attr-defined]
        try:
            yield calls
        finally:
            for module in users:
                module.build_model_with_cfg = build_model_with_cfg  # type: ignore[attr-defined]


def _defaults(cls: type[nn.Module]) -> Arguments:
    """Return the defaults of a constructor's arguments, with those of its base classes."""
    found: Arguments = {}
    for base in cls.__mro__:
        init: Any = base.__dict__.get("__init__")
        if init is not None and issubclass(base, nn.Module) and base is not nn.Module:
            for parameter in inspect.signature(init).parameters.values():
                if parameter.default is not inspect.Parameter.empty:
                    found.setdefault(parameter.name, parameter.default)
    return found

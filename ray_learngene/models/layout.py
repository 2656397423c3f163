"""What the parameters of a model mean: its chains of exchangeable blocks, and the axes that scale.

Both are found on the meta device, by building a model at changed sizes and comparing shapes. No weights are needed.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import ray_learngene.models.timm_import  # noqa: F401  isort:skip  (before the first timm import)
import torch
from timm.layers import resample_abs_pos_embed, resize_rel_pos_bias_table
from timm.models import adapt_input_conv
from torch import Tensor, nn

from ray_learngene.config.image import ImageShape
from ray_learngene.errors import UserError
from ray_learngene.models.build import entry_point, meta_model, shapes_of
from ray_learngene.models.families.base import Family
from ray_learngene.models.families.registry import family_of
from ray_learngene.models.specs import Spec, size_of

SCALING = ("stream", "attention", "hidden")

Kind = Literal["fixed", "stream", "attention", "hidden", "token", "class", "layer"]
_ATTENTION_ROWS = re.compile(r"(^|\.)(qkv|kv|q|k|v|q_proj|k_proj|v_proj)\.(weight|bias)$|\.(q|k|v)_bias$")
_PROJECTION = re.compile(r"attn[^.]*\.proj\.weight$")


@dataclass(frozen=True)
class Axis:
    """One axis of a parameter.

    Attributes:
        kind: What its size follows.
        groups: Equal parts that it concatenates, such as query, key and value.
    """

    kind: Kind
    groups: int = 1


def family(spec: Spec) -> Family:
    """Return the family of a spec's model."""
    return family_of(entry_point(spec))


# Chains of blocks.


@lru_cache(maxsize=1024)
def chains(spec: Spec) -> dict[str, tuple[str, ...]]:
    """Return the chains of a model: blocks that can take each other's parameters, by name and in order.

    A chain is named after its list of blocks. Blocks of one list that differ, such as Swin's with and without shifted
    windows, are several chains of it.
    """
    model = meta_model(spec)
    found: dict[str, list[str]] = {}
    for name in block_lists(spec):
        kinds: list[Any] = []
        for index, block in model.get_submodule(name).named_children():
            kind = _kind_of(block)
            if kind not in kinds:
                kinds.append(kind)
            place = kinds.index(kind)
            found.setdefault(f"{name}:{place}" if place else name, []).append(f"{name}.{index}")
    return {name: tuple(blocks) for name, blocks in found.items()}


def _kind_of(block: nn.Module) -> Any:
    """Return what must be equal for two blocks to be exchangeable: classes, shapes and plain attributes, by name."""
    attributes = [
        (name, type(module).__name__, sorted((key, repr(value)) for key, value in _plain_attributes(module)))
        for name, module in block.named_modules()
        if "drop_path" not in name
    ]
    tensors = [(name, tuple(tensor.shape)) for name, tensor in block.state_dict().items()]
    return attributes, tensors


def _plain_attributes(module: nn.Module) -> Iterator[tuple[str, Any]]:
    plain = (bool, int, float, str, tuple, list, type(None))
    skipped = ("training", "drop_prob", "drop_path_prob", "fused_attn", "layer_idx", "block_idx")
    return ((key, value) for key, value in vars(module).items() if key not in skipped and isinstance(value, plain))


@lru_cache(maxsize=1024)
def block_lists(spec: Spec) -> tuple[str, ...]:
    """Return the names of the lists whose length follows the depth."""
    return _block_lists(spec.replace(image=spec.image, classes=max(1, spec.classes)))


@lru_cache(maxsize=1024)
def _block_lists(spec: Spec) -> tuple[str, ...]:
    if spec.architecture is None:
        return ("blocks",)
    deeper = spec.replace(depths=tuple(depth + 1 for depth in size_of(spec).depths))
    before, after = _lengths(meta_model(spec)), _lengths(meta_model(deeper))
    grown = [name for name, length in after.items() if length > before.get(name, 0)]
    outer = [name for name in grown if not any(name.startswith(f"{other}.") for other in grown)]
    return tuple(name for name in outer if name in before)


@lru_cache(maxsize=1024)
def layered(spec: Spec) -> dict[str, int]:
    """Return the parameters outside blocks that have an axis of layers, with that axis."""
    return {} if spec.architecture is None else _layered(spec.replace(classes=max(1, spec.classes)))


@lru_cache(maxsize=1024)
def _layered(spec: Spec) -> dict[str, int]:
    deeper = shapes_of(spec.replace(depths=tuple(depth + 1 for depth in size_of(spec).depths)))
    own, lists, found = shapes_of(spec), block_lists(spec), dict[str, int]()
    for name, shape in own.items():
        if split(name, lists) is None and len(deeper.get(name, shape)) == len(shape) and deeper.get(name) != shape:
            changed = [
                dim for dim, sizes in enumerate(zip(shape, deeper.get(name, shape), strict=True)) if len({*sizes}) > 1
            ]
            found |= {name: changed[0]} if changed else {}
    return found


def _lengths(model: nn.Module) -> dict[str, int]:
    return {
        name: len(module)
        for name, module in model.named_modules()
        if isinstance(module, nn.Sequential | nn.ModuleList) and name
    }


@lru_cache(maxsize=65536)  # every step generates its models again
def split(name: str, lists: tuple[str, ...]) -> tuple[str, int, str] | None:
    """Split a parameter's name into list, index and rest; None for a parameter outside blocks."""
    for each in lists:
        if name.startswith(f"{each}."):
            index, _, rest = name[len(each) + 1 :].partition(".")
            if index.isdecimal():
                return each, int(index), rest
    return None


def reduced(spec: Spec, blocks: int | Callable[[int], int]) -> Spec:
    """Return the smallest spec of which every chain has `blocks` blocks, or all if the spec's own has fewer.

    Args:
        blocks: A number, or a function of the length of a chain.
    """
    counts = {name: len(chain) for name, chain in chains(spec).items()}
    wanted = {name: min(blocks(count) if callable(blocks) else blocks, count) for name, count in counts.items()}
    return _with_chains(spec, tuple(wanted.items()))


@lru_cache(maxsize=1024)
def _with_chains(spec: Spec, lengths: tuple[tuple[str, int], ...]) -> Spec:
    if spec.architecture is None:
        return spec.replace(depth=lengths[0][1])
    wanted = dict(lengths)
    depths = list(size_of(spec).depths)
    for stage in range(len(depths)):
        for depth in range(1, depths[stage]):
            fewer = spec.replace(depths=(*depths[:stage], depth, *depths[stage + 1 :]))
            has = {name: len(chain) for name, chain in chains(fewer).items()}
            if all(has.get(name, 0) >= count for name, count in wanted.items()):
                depths[stage] = depth
                break
    return spec.replace(depths=tuple(depths))


# Axes.


@lru_cache(maxsize=256)
def axes(spec: Spec) -> dict[str, tuple[Axis, ...]]:
    """Return what every axis of every parameter and buffer follows, by name."""
    own, rules = shapes_of(spec), family(spec)
    probes: dict[Kind, Mapping[str, torch.Size]] = {}
    for kind, changes in _probes(spec).items():
        try:
            shapes = shapes_of(spec.replace(**changes))
        except (UserError, ValueError):
            continue
        if shapes.keys() == own.keys():
            probes[kind] = shapes
    return {name: tuple(_axis(name, dim, own, probes, rules) for dim in range(len(own[name]))) for name in own}


def _probes(spec: Spec) -> dict[Kind, dict[str, Any]]:
    found: dict[Kind, dict[str, Any]] = {
        "hidden": {"mlp_ratio": 2 * spec.mlp_ratio},
        "stream": {"width": 2 * spec.width, "heads": 2 * spec.heads},
        "token": {"image": spec.image._replace(height=2 * spec.image.height, width=2 * spec.image.width)},
    }
    return found | ({"class": {"classes": spec.classes + 1}} if spec.classes else {})


def _axis(
    name: str, dim: int, own: Mapping[str, torch.Size], probes: Mapping[Kind, Mapping[str, torch.Size]], rules: Family
) -> Axis:
    kind: Kind = next((kind for kind, shapes in probes.items() if shapes[name][dim] != own[name][dim]), "fixed")
    attention = (dim == 0 and _ATTENTION_ROWS.search(name)) or (dim == 1 and _PROJECTION.search(name))
    if kind == "stream" and attention:
        kind = "attention"
    return Axis(kind, rules.groups(name, dim, own) if kind in ("stream", "attention", "hidden") else 1)


def roles(name: str, axis: Axis) -> tuple[str, ...]:
    """Name what each group of an axis that scales holds: `stream`, `hidden`, or `q`, `k` or `v` of attention.

    Columns of the projection after attention hold values.
    """
    if axis.kind != "attention":
        return (axis.kind,) * axis.groups
    found = _ATTENTION_ROWS.search(name)
    letters = (found[2] or found[4])[: axis.groups] if found else "v"
    return tuple(letters) if len(letters) == axis.groups else (letters[-1],) * axis.groups


# Images of another shape.


def resampled(state: Mapping[str, Tensor], spec: Spec, image: ImageShape) -> dict[str, Tensor]:
    """Resample the positions of a state dict to those of a spec's model, and adapt its first layer to other channels.

    Both are timm's own functions.

    Args:
        image: Shape of the images that the state dict is for.

    Raises:
        UserError: timm has none for the class of the model.
    """
    shapes = shapes_of(spec)
    found = dict(state)
    if image != spec.image:
        for name, tensor in _adapted(state, spec, image):
            found[name] = tensor
    odd = [name for name, tensor in found.items() if tensor.shape != shapes[name]]
    if not odd:
        return found
    model = meta_model(spec)
    convert = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    converted = convert(dict(found), model) if convert else {}
    wrong = [name for name in odd if name not in converted or converted[name].shape != shapes[name]]
    if wrong:
        raise UserError(
            f"{entry_point(spec)}: timm cannot resample {wrong[0]} from {list(found[wrong[0]].shape)} to "
            f"{list(shapes[wrong[0]])}, for images of {spec.image.words}"
        )
    return {**found, **{name: converted[name] for name in odd}}


def _adapted(state: Mapping[str, Tensor], spec: Spec, image: ImageShape) -> Iterator[tuple[str, Tensor]]:
    """Yield what the height, the width and the channels of both shapes decide.

    timm's filters of checkpoints take only the new shape, and the old one for square.
    """
    before, after = (meta_model(spec.replace(image=each)) for each in (image, spec.image))
    grids = [getattr(getattr(model, "patch_embed", None), "grid_size", ()) for model in (before, after)]
    first = getattr(after, "pretrained_cfg", {}).get("first_conv")
    for name, tensor in state.items():
        module, _, kind = name.rpartition(".")
        if name == "pos_embed" and tensor.ndim == 3 and all(grids):
            prefix = tensor.shape[1] - math.prod(grids[0])
            yield name, resample_abs_pos_embed(tensor, grids[1], grids[0], num_prefix_tokens=prefix)
        elif kind == "relative_position_bias_table":
            old, new = (getattr(model.get_submodule(module), "window_size", None) for model in (before, after))
            if new and old != new:
                yield name, resize_rel_pos_bias_table(tensor, new, tuple(shapes_of(spec)[name]), old)
        elif name == f"{first}.weight" and image.channels != spec.image.channels:
            yield name, adapt_input_conv(spec.image.channels, tensor, image.channels)


def scales_input(module: nn.Module, dim: int) -> bool:
    """Tell whether an axis of a module's weight is summed over, so that repeated inputs need smaller weights."""
    return dim == 1 and isinstance(module, nn.Linear | nn.Conv2d)

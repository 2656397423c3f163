"""Code that methods share: which parameters a model inherits, and checks of what an expansion may change."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from ray_learngene.errors import UserError
from ray_learngene.models.build import build, head_names, is_plain, shapes_of
from ray_learngene.models.layout import Axis, axes, block_lists, chains, layered, split
from ray_learngene.models.specs import Spec, size_of
from ray_learngene.progress import counted

Choose = Callable[[int, int], Sequence[int | None]]
_SIZES = ("width", "heads", "patch", "mlp_ratio")


def require_same(method: str, source: Spec, spec: Spec, *fields: str) -> None:
    """Check that a spec has the learngene's architecture, and its values in the fields that the method cannot change.

    Raises:
        UserError: a field differs; the message gives its name and both values.
    """
    for field in ("architecture", *fields):
        have, want = getattr(source, field), getattr(spec, field)
        if have == want or (field == "architecture" and is_plain(source) and is_plain(spec)):
            continue
        if field == "architecture":
            have, want = (one or "the presets' plain vision transformer" for one in (have, want))
        raise UserError(
            f"{method} cannot change the {field}: the learngene has {field} {have}, the spec asks for {want}"
        )
    if "width" in fields and None not in (source.architecture, spec.architecture):
        have, want = size_of(source).widths, size_of(spec).widths
        if have != want:
            raise UserError(f"{method} cannot change the widths: the learngene has {have}, the spec asks for {want}")


def require_head_size(method: str, source: Spec, spec: Spec, whose: str = "the learngene") -> None:
    """Check that the head size is that of the source: at another one the columns of q, k and v would change meaning.

    Raises:
        UserError: the head sizes differ; the message gives both.
    """
    have, want = source.width // source.heads, spec.width // spec.heads
    if have != want and not (source.architecture and not size_of(source).heads):
        heads, rest = divmod(spec.width, have)
        cure = f"a width is a multiple of {have}" if rest else f"width {spec.width} takes {counted(heads, 'head')}"
        raise UserError(
            f"{method} keeps the head size: {whose}'s heads are {have} wide, those of the spec {want} ({cure})"
        )


def is_head(name: str, spec: Spec) -> bool:
    """Tell whether a parameter belongs to the classification head."""
    return name.startswith(head_names(spec))


def fresh_head(spec: Spec, seed: int) -> dict[str, Tensor]:
    """Return the parameters of the classification head as timm initialises them; of features, none."""
    return {name: tensor for name, tensor in build(spec, seed=seed).state_dict().items() if is_head(name, spec)}


def singletons(tensors: Mapping[str, Tensor], source: Spec, spec: Spec) -> dict[str, Tensor]:
    """Select the parameters outside blocks, such as patch and position embedding, final norm and head.

    The head is omitted if there is none or if the spec has another number of classes.
    """
    lists, of_layers = block_lists(spec), layered(spec)
    return {
        name: tensors[name]
        for name in shapes_of(spec)
        if name in tensors
        and name not in of_layers
        and not split(name, lists)
        and (spec.classes == source.classes or not is_head(name, source))
    }


def blocks_of(tensors: Mapping[str, Tensor], spec: Spec) -> dict[str, list[dict[str, Tensor]]]:
    """Group the parameters of blocks, named as in the model of `spec`: for every chain its stored blocks, in order."""
    lists, stored = block_lists(spec), dict[str, dict[str, Tensor]]()
    for name, tensor in tensors.items():
        found = split(name, lists)
        if found:
            each, index, rest = found
            stored.setdefault(f"{each}.{index}", {})[rest] = tensor
    return {name: [stored[block] for block in chain if block in stored] for name, chain in chains(spec).items()}


def sliced(
    tensors: Mapping[str, Tensor], source: Spec, spec: Spec, take: Callable[[Tensor, int, int, Axis], Tensor]
) -> dict[str, Tensor]:
    """Reduce parameters, named as in the model of `spec`, from the widths of `source` to those of `spec`.

    Args:
        take: Given a parameter, a dimension, its new size and what it follows, the parameter at that size.
    """
    at_source = spec.replace(width=source.width, heads=source.heads, mlp_ratio=source.mlp_ratio)
    have, want, found = axes(at_source), shapes_of(spec), dict[str, Tensor]()
    for name, tensor in tensors.items():
        for dim, axis in enumerate(have[name]):
            size = want[name][dim]
            if axis.kind not in ("token", "class") and tensor.shape[dim] != size:
                tensor = take(tensor, dim, size, axis)
        found[name] = tensor
    return found


def inherited_blocks(tensors: Mapping[str, Tensor], source: Spec, spec: Spec, choose: Choose) -> dict[str, Tensor]:
    """Fill the layers of a spec's model with stored blocks, chain by chain.

    Args:
        tensors: Blocks, named as in the model of `source`.
        choose: Given the layers of a chain and its stored blocks, the stored block of every layer; None leaves it out.
    """
    blocks, state = blocks_of(tensors, source), dict[str, Tensor]()
    for name, chain in chains(spec).items():
        stored = blocks.get(name) or blocks.get(name.partition(":")[0]) or []
        for block, chosen in zip(chain, choose(len(chain), len(stored)) if stored else (), strict=False):
            if chosen is not None:
                state |= {f"{block}.{rest}": tensor for rest, tensor in stored[chosen].items()}
    for name, dim in layered(spec).items():
        ((key, layers_of_spec),) = chains(spec).items()
        places = [place for place, block in enumerate(chains(source)[key]) if _is_stored(block, tensors)]
        layers = choose(len(layers_of_spec), len(places))
        if name in tensors and None not in layers:
            indices = torch.tensor(
                [places[layer] for layer in layers if layer is not None], device=tensors[name].device
            )
            state[name] = tensors[name].index_select(dim, indices)
    return state


def _is_stored(block: str, tensors: Mapping[str, Tensor]) -> bool:
    return any(name.startswith(f"{block}.") for name in tensors)


def nearest_layers(depth: int, of: int) -> list[int]:
    """Return the layer of the auxiliary at the same height as each layer of a model: midpoints of equal spans."""
    return [(2 * layer + 1) * of // (2 * depth) for layer in range(depth)]


def kept_layers(depth: int, of: int, rule: Literal["even", "first"]) -> list[int]:
    """Choose the layers of a slice of `depth` layers: the first ones, or evenly spaced ones from first to last."""
    if rule == "first" or depth == of:
        return list(range(depth))
    if depth == 1:
        return [0]
    return [round(layer * (of - 1) / (depth - 1)) for layer in range(depth)]

"""Start the shared blocks of an auxiliary model from the blocks of a trained model of the same family.

Every shared block stands for a run of consecutive layers, chain by chain. It gets one block of the trained model's run,
or their average. A wider model gives evenly spaced channels, as in weight selection.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from ray_learngene.errors import UserError
from ray_learngene.methods.generated import State, gene_of
from ray_learngene.methods.shared_weights import blocks_of, is_head, require_head_size, sliced
from ray_learngene.methods.weight_selection import selection_of
from ray_learngene.models.build import shapes_of, spec_of
from ray_learngene.models.layout import block_lists, chains, layered, resampled, split
from ray_learngene.models.specs import Spec

Rule = Literal["first", "middle", "last", "average"]


@torch.no_grad()
def start_from_model(module: nn.Module, model: nn.Module, rule: Rule, order: Sequence[int] | None = None) -> None:
    """Load the parameters of a trained timm model into an auxiliary model; a head of other classes stays as it is.

    Args:
        rule: The block of a run of layers that becomes the shared one, or their average.
        order: Index in the trained model of each class of the auxiliary one; default: they are the same.

    Raises:
        UserError: the auxiliary model shares no blocks, or the trained model is of another family or narrower.
    """
    spec: Spec = module.spec  # type: ignore[assignment]
    genes = {gene_of(name): name for name in module.state_dict()}
    known, source = shapes_of(spec), spec_of(model)
    if not genes.keys() <= known.keys():
        raise UserError(f"the method has no blocks to start from the ancestry's: it trains {min(genes.keys() - known)}")
    trained = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    given = {
        name: tensor
        for name, tensor in _chosen(trained, source, spec, genes, rule).items()
        if not is_head(name, spec) or tensor.shape[0] == spec.classes
    }
    if order is not None:
        given |= {name: tensor[torch.tensor(order)] for name, tensor in given.items() if is_head(name, spec)}
    missing = {name for name in genes if not is_head(name, spec)} - given.keys()
    unlike = missing or {name for name, tensor in given.items() if tensor.ndim != len(known[name])}
    if unlike:
        name = f"{source.architecture or 'the plain vision transformer'}"
        raise UserError(f"a warm start needs an ancestry model of the student's family; {name} has no {min(unlike)}")
    require_head_size("a warm start", source, spec, "the ancestry model")
    if spec.patch != source.patch or spec.width > source.width:
        raise UserError(
            f"a warm start needs an ancestry model of patch size {spec.patch} and at least width {spec.width}, "
            f"this one has patch size {source.patch} and width {source.width}"
        )
    # timm's functions first: slicing takes evenly spaced entries of any axis, of channels of images too
    wide = spec.replace(width=source.width, heads=source.heads, mlp_ratio=source.mlp_ratio)
    state = sliced(resampled(given, wide, source.image), source, spec, selection_of(source))
    own = module.state_dict()
    module.load_state_dict({**own, **{genes[name]: tensor.to(own[genes[name]]) for name, tensor in state.items()}})


def _chosen(trained: State, source: Spec, spec: Spec, genes: dict[str, str], rule: Rule) -> State:
    """Return the trained model's parameters under the names of genes."""
    lists, of_layers = block_lists(spec), layered(source)
    state = {
        name: tensor
        for name, tensor in trained.items()
        if name in genes and name not in of_layers and split(name, lists) is None
    }
    blocks = blocks_of(trained, source)
    for chain, layers in chains(spec).items():
        shared = [layer for layer in layers if any(name.startswith(f"{layer}.") for name in genes)]
        stored = blocks.get(chain) or blocks.get(chain.partition(":")[0], [])
        for place, layer in enumerate(shared if stored else ()):
            run = stored[slice(*_run(place, len(shared), len(stored)))]
            for rest in run[0]:
                state[f"{layer}.{rest}"] = _one(torch.stack([block[rest] for block in run]), rule)
    for name, dim in of_layers.items():
        if name in genes:
            values = trained[name].movedim(dim, 0)
            count = len(blocks_of(dict.fromkeys(genes, values), spec)["blocks"])
            runs = [_one(values[slice(*_run(place, count, len(values)))], rule) for place in range(count)]
            state[name] = torch.stack(runs).movedim(0, dim)
    return state


def _run(place: int, of: int, layers: int) -> tuple[int, int]:
    """Return the first layer of a shared block's run and the one after its last."""
    first = place * layers // of
    return first, max(first + 1, (place + 1) * layers // of)


def _one(layers: Tensor, rule: Rule) -> Tensor:
    if rule == "average":
        return layers.mean(0)
    return layers[{"first": 0, "middle": len(layers) // 2, "last": -1}[rule]]

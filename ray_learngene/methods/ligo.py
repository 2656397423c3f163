"""LiGO: learn to grow a smaller trained model (Wang et al., ICLR 2023, arXiv 2303.00980).

Every parameter of the larger model is a linear function of the smaller model's parameters, first in depth, then width:

    W̄_l = Σ_j w_lj W_j,        W'_l = [I; B] W̄_l [I; A]ᵀ.

The expanders are tied on the residual stream. A layer that writes to the stream uses the B of the embeddings; a layer
that reads from it has A = B. The projection reads with the expander of v, fc2 with that of fc1. All layers share the
expanders of q, k, v and fc1. With `expanders=layer` each layer has its own, as in the authors' release.
The source is frozen. w and the expanders are trained for 100 steps, then the larger model is plain.

Initially w copies layers, and every row of B averages with random positive weights that sum to 1. The release's run
(`stackbert_noisy rand`) is `expanders=layer:noise=0.03`. If nothing grows, the model without noise is the source.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import chain as joined
from typing import ClassVar, Literal, TypeVar

import torch
from pydantic import Field
from torch import Tensor, nn

from ray_learngene.config.base import LATER
from ray_learngene.errors import UserError
from ray_learngene.methods.base import Learngene
from ray_learngene.methods.generated import FittedVisionTransformer, Genes, State, require_no_statistics
from ray_learngene.methods.shared_weights import (
    blocks_of,
    fresh_head,
    is_head,
    require_head_size,
    require_same,
    singletons,
)
from ray_learngene.methods.trained_source import SourceMethod, require_order
from ray_learngene.models.build import shapes_of
from ray_learngene.models.layout import SCALING, axes, block_lists, chains, family, layered, resampled, roles, split
from ray_learngene.models.specs import Spec

T = TypeVar("T")
_ORDER = ("stream", "q", "k", "v", "hidden")  # in which expanders are initialised
_SCALERS = ("depth_scaler", "width_scaler")


@dataclass(frozen=True)
class Expander:
    """How an axis grows: to `want` from `have` entries, each of `channels` channels that stay together."""

    have: int
    want: int
    channels: int = 1

    def matrix(self, added: Tensor | None, device: torch.device) -> Tensor:
        """Return `[want, have]` with the trained rows `added`; rows and columns of whole heads count channels.

        Rows of L layers, `[L, want - have, have]`, give `[L, want, have]`.
        """
        rows = torch.eye(self.have, device=device)
        if added is not None:
            rows = torch.cat([rows.expand(*added.shape[:-2], -1, -1), added], -2)
        return rows if self.channels == 1 else torch.kron(rows, torch.eye(self.channels, device=device))


def mixed(weights: Tensor, layers: Tensor) -> Tensor:
    """Mix the stacked parameters of L layers `[L, ...]` by `weights [L', L]` into those of L' layers."""
    return (weights @ layers.flatten(1)).unflatten(1, layers.shape[1:])


def widened(tensor: Tensor, dim: int, matrix: Tensor) -> Tensor:
    """Apply a matrix `[n', n]` to one dimension, of size n."""
    if dim == tensor.ndim - 1:
        return tensor @ matrix.mT
    if dim == tensor.ndim - 2:
        return matrix @ tensor
    return mixed(matrix, tensor.movedim(dim, 0)).movedim(0, dim)


def widened_each(layers: Tensor, dim: int, matrices: Tensor) -> Tensor:
    """Apply to every layer of `[L, ...]` a matrix of its own, `[L, n', n]`, to one dimension, of size n."""
    return torch.einsum("lnm,lm...->ln...", matrices, layers.movedim(dim, 1)).movedim(1, dim)


def _expanders_of(name: str, shape: torch.Size, source: Spec) -> dict[int, tuple[str, ...]]:
    """Name the expanders of every axis of a parameter that scales: one for each of its groups.

    Axes of one kind share an expander if they have one size. That of the plain vision transformer has no size in its
    name.
    """
    usual = {"hidden": source.hidden}
    found = {}
    for dim, axis in enumerate(axes(source)[name]):
        if axis.kind in SCALING:
            size = shape[dim] // axis.groups
            found[dim] = tuple(
                role if size == usual.get(role, source.width) else f"{role}{size}" for role in roles(name, axis)
            )
    return found


@lru_cache(maxsize=64)
def _expanders(source: Spec, spec: Spec) -> dict[str, Expander]:
    """Return the expanders of all axes by name."""
    before, after, found = shapes_of(source), shapes_of(spec), dict[str, Expander]()
    kept = source.width // source.heads if family(source).whole_heads else 1
    for name, shape in before.items():
        for dim, names in _expanders_of(name, shape, source).items():
            have, want = shape[dim] // len(names), after[name][dim] // len(names)
            for each in names:
                channels = kept if each[0] in "qkv" and not have % kept and not want % kept else 1
                expander = Expander(have // channels, want // channels, channels)
                if found.setdefault(each, expander) != expander:
                    raise UserError(f"LiGO cannot grow {source.architecture} to {spec}: {name} grows unlike its like")
    return dict(sorted(found.items(), key=lambda one: (_ORDER.index(one[0]) if one[0] in _ORDER else 9, one[0])))


def _places(source: Spec, spec: Spec, *, own: bool) -> list[tuple[str, str | None]]:
    """List the expanders to train: each with the chain whose layers have their own, or None if it is shared.

    Args:
        own: Every layer has its own expanders, except those of the residual stream.
    """
    firsts = {chain: _stored(chain, chains(source))[0] for chain in chains(spec)}
    lists, found = block_lists(source), dict[tuple[str, str | None], None]()
    for name, shape in shapes_of(source).items():
        users: list[str | None] = [None]
        if own and split(name, lists):
            users = [chain for chain, first in firsts.items() if name.startswith(f"{first}.")]
        for each in joined.from_iterable(_expanders_of(name, shape, source).values()):
            found |= dict.fromkeys((each, None if each.startswith("stream") else user) for user in users)
    return list(found)


def _diagonal(matrices: Sequence[Tensor]) -> Tensor:
    """Join the matrices of the groups of an axis, or those of every layer, `[L, n', n]`, to block-diagonal ones."""
    if len(matrices) == 1:
        return matrices[0]
    if matrices[0].ndim == 2:
        return torch.block_diag(*matrices)
    return torch.stack([torch.block_diag(*each) for each in zip(*matrices, strict=True)])


def _layer_gene(chain: str, rest: str) -> str:
    return f"depth_scaler.{rest}" if chain == "blocks" else f"depth_scaler.{chain}.{rest}"


def _stored(chain: str, blocks: Mapping[str, Sequence[T]]) -> Sequence[T]:
    """Return the source's blocks of a chain; a chain that the source lacks takes those of the same list."""
    return blocks.get(chain) or blocks[chain.partition(":")[0]]


def grown(genes: Genes, spec: Spec, *, source: Spec) -> State:
    """Generate the state dict of the larger model of `spec`.

    Args:
        genes: `depth_scaler.<parameter>` is w of a block parameter. `width_scaler.<expander>` is B; it exists if that
            width grows. `width_scaler.<chain>.<expander>` holds the B of every layer of a chain. `source.<parameter>`
            is a frozen parameter of the source model, at the spec's image size. All other genes are a new head.
    """
    tensors = {name.removeprefix("source."): x for name, x in genes.items() if name.startswith("source.")}
    device = next(iter(tensors.values())).device
    matrices = {
        gene: expander.matrix(genes.get(f"width_scaler.{gene}"), device)
        for name, expander in _expanders(source, spec).items()
        for gene in (name, *(f"{chain}.{name}" for chain in chains(spec)))
        if gene == name or f"width_scaler.{gene}" in genes
    }

    def wide(name: str, tensor: Tensor, chain: str | None = None) -> Tensor:
        leading = int(chain is not None)  # the axis of layers
        for dim, names in _expanders_of(name, tensor.shape[leading:], source).items():
            matrix = _diagonal([matrices.get(f"{chain}.{each}", matrices[each]) for each in names])
            tensor = (widened if matrix.ndim == 2 else widened_each)(tensor, dim + leading, matrix)
        return tensor

    state = {name: wide(name, tensor) for name, tensor in singletons(tensors, source, spec).items()}
    for name, dim in layered(source).items():
        state[name] = wide(name, widened(tensors[name], dim, genes[f"depth_scaler.{name}"]))
    state |= {name: x for name, x in genes.items() if name.partition(".")[0] not in ("source", *_SCALERS)}
    blocks = blocks_of(tensors, source)
    for chain, layers in chains(spec).items():
        stored = _stored(chain, blocks)
        first = _stored(chain, chains(source))[0]
        for rest in stored[0]:
            mix = mixed(genes[_layer_gene(chain, rest)], torch.stack([block[rest] for block in stored]))
            parameters = wide(f"{first}.{rest}", mix, chain)
            state |= {f"{layer}.{rest}": tensor for layer, tensor in zip(layers, parameters, strict=True)}
    return state


class LiGO(SourceMethod):
    """Learned linear growth of a smaller trained model."""

    name: ClassVar[str] = "ligo"
    source = "smallest"
    expansion_options: ClassVar[frozenset[str]] = frozenset({"fit", "fit_lr", "layers", "expanders", "noise"})

    fit: int = Field(100, ge=0, description="steps that train the growth; 0: none")
    fit_lr: float = Field(3e-3, gt=0, description="peak learning rate of the growth")
    layers: Literal["stack", "interlace"] = Field(
        "stack", description="initial copy of the layers: stack (0 1 2 0 1 2) or interlace (0 0 1 1 2 2)"
    )
    expanders: Literal["shared", "layer"] = Field(
        "shared",
        description="expanders of attention and MLP: shared by all layers, or each layer its own (the release)",
        json_schema_extra=LATER,
    )
    noise: float = Field(
        0,
        ge=0,
        description="add up to this to every initial weight of a layer (the release: 0.03)",
        json_schema_extra=LATER,
    )

    @torch.no_grad()
    def expand(self, learngene: Learngene | None, spec: Spec, *, seed: int = 0) -> nn.Module:
        """Build the larger model from the initial growth, without fitting."""
        return self._growing(learngene, spec, seed).materialise()

    @property
    def fitting_steps(self) -> int:
        return self.fit

    def adapter(self, learngene: Learngene | None, spec: Spec, *, seed: int = 0) -> FittedVisionTransformer | None:
        """Build the larger model whose growth is to be fitted, with a fresh head if the classes differ."""
        growing = self._growing(learngene, spec, seed)
        return growing if growing.fit_steps else None

    def _growing(self, learngene: Learngene | None, spec: Spec, seed: int) -> FittedVisionTransformer:
        made = self.as_made(learngene)
        assert learngene is not None
        source = learngene.spec
        require_no_statistics(self.name, source)
        require_order("LiGO", source, spec, grows=True)
        require_same("LiGO", source, spec, "patch")
        require_head_size("LiGO", source, spec)
        has_head = any(is_head(name, source) for name in learngene.tensors)
        inherits_head = spec.classes == source.classes and (has_head or not spec.classes)
        source = source.replace(image=spec.image)
        tensors = resampled(learngene.tensors, source, learngene.spec.image)
        frozen = {
            f"source.{name}": tensor for name, tensor in tensors.items() if inherits_head or not is_head(name, source)
        }
        genes = made._start(tensors, source, spec, seed)
        if not inherits_head:
            genes |= fresh_head(spec, seed)
        return FittedVisionTransformer(spec, genes, partial(grown, source=source), frozen, made.fit, made.fit_lr)

    def _start(self, tensors: State, source: Spec, spec: Spec, seed: int) -> State:
        generator = torch.Generator().manual_seed(seed)
        genes, blocks, of_chains = State(), blocks_of(tensors, source), chains(spec)
        for chain, layers in of_chains.items():
            stored = _stored(chain, blocks)
            genes |= {_layer_gene(chain, rest): self._mixing(len(layers), len(stored), generator) for rest in stored[0]}
        for name in layered(source):
            genes[f"depth_scaler.{name}"] = self._mixing(spec.depth, source.depth, generator)
        expanders = _expanders(source, spec)
        places = _places(source, spec, own=self.expanders == "layer")
        for name, user in sorted(places, key=lambda place: (list(expanders).index(place[0]), place[1] or "")):
            have, want = expanders[name].have, expanders[name].want
            if want > have:
                repeated = (len(of_chains[user]),) if user else ()
                gene = f"{user}.{name}" if user else name
                genes[f"width_scaler.{gene}"] = _averages((*repeated, want - have, have), generator)
        return genes

    def _mixing(self, depth: int, of: int, generator: torch.Generator) -> Tensor:
        """Return the mixing weights `[depth, of]` that copy layers, with noise."""
        layers = torch.arange(depth)
        copied = torch.eye(of)[layers % of if self.layers == "stack" else layers * of // depth]
        if not self.noise:
            return copied
        noisy = torch.where(copied > 0, copied, self.noise * torch.rand(copied.shape, generator=generator))
        return noisy / noisy.sum(1, keepdim=True)


def _averages(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Return random positive rows that sum to 1."""
    rows = torch.rand(shape, generator=generator)
    return rows / rows.sum(-1, keepdim=True)

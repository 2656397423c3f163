"""LiGO: learn to grow a smaller trained model (Wang et al., ICLR 2023, arXiv 2303.00980).

Every parameter of the larger model is a linear function of the smaller model's parameters, first in depth, then width:

    W̄_l = Σ_j w_lj W_j,        W'_l = [I; B] W̄_l [I; A]ᵀ.

All layers share the expanders, which are tied on the residual stream. A layer that writes to the stream uses the B of
the embeddings; a layer that reads from it has A = B. The projection reads with the expander of v, fc2 with that of fc1.
The source is frozen. w and the expanders are trained for 100 steps, then the larger model is plain.

Initially w copies layers, and every row of B averages with random positive weights that sum to 1. This follows the
authors' released run (`stackbert_noisy rand`), without its noise. If nothing grows, the model is the source itself.
"""

from __future__ import annotations

from functools import partial
from typing import ClassVar, Literal

import torch
from pydantic import Field
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

from ray_learngene.methods.base import Learngene
from ray_learngene.methods.generated import GeneratedVisionTransformer, Genes, State
from ray_learngene.methods.shared_weights import blocks_of, require_head_size, require_plain, require_same, singletons
from ray_learngene.methods.trained_source import SourceMethod, require_order
from ray_learngene.models.specs import Spec, build

# The expander of each dimension of a block parameter. All other parameters are vectors of the residual stream.
_EXPANDERS = {
    "attn.qkv.weight": ("qkv", "stream"),
    "attn.qkv.bias": ("qkv",),
    "attn.proj.weight": ("stream", "v"),
    "mlp.fc1.weight": ("hidden", "stream"),
    "mlp.fc1.bias": ("hidden",),
    "mlp.fc2.weight": ("stream", "hidden"),
}


def mixed(weights: Tensor, layers: Tensor) -> Tensor:
    """Mix the stacked parameters of L layers `[L, ...]` by `weights [L', L]` into those of L' layers."""
    return (weights @ layers.flatten(1)).unflatten(1, layers.shape[1:])


def widened(tensor: Tensor, rows: Tensor, columns: Tensor | None = None) -> Tensor:
    """Widen vectors `[..., n]` by `rows [n', n]`; with `columns [m', m]`, matrices `[..., n, m]` to `[..., n', m']`."""
    return tensor @ rows.mT if columns is None else rows @ tensor @ columns.mT


def grown(genes: Genes, spec: Spec, *, source: Spec) -> State:
    """Generate the state dict of the larger model of `spec`.

    Args:
        genes: `depth_scaler.<parameter>` is w of a block parameter. `width_scaler.<expander>` is B; it exists if that
            width grows. `source.<parameter>` is a frozen parameter of the source model. `head.*` is a new head.
    """
    tensors = {name.removeprefix("source."): x for name, x in genes.items() if name.startswith("source.")}
    expanders: State = {}
    for name, size in _sizes(source).items():
        identity = torch.eye(size, device=tensors["pos_embed"].device)
        added = genes.get(f"width_scaler.{name}")
        expanders[name] = identity if added is None else torch.cat([identity, added])
    expanders["qkv"] = torch.block_diag(*(expanders[name] for name in "qkv"))
    stream = expanders["stream"]

    state = singletons(tensors, source, spec)
    side = spec.image // spec.patch
    state["pos_embed"] = resample_abs_pos_embed(state["pos_embed"], [side, side], num_prefix_tokens=0)
    kernel = state["patch_embed.proj.weight"]
    state["patch_embed.proj.weight"] = (stream @ kernel.flatten(1)).unflatten(1, kernel.shape[1:])
    for name in state.keys() - {"patch_embed.proj.weight", "head.bias"}:
        state[name] = widened(state[name], stream)
    state |= {name: tensor for name, tensor in genes.items() if name.startswith("head.")}
    blocks = blocks_of(tensors, source)["blocks"]
    for rest in blocks[0]:
        layers = torch.stack([blocks[layer][rest] for layer in range(source.depth)])
        layers = mixed(genes[f"depth_scaler.{rest}"], layers)
        layers = widened(layers, *(expanders[name] for name in _EXPANDERS.get(rest, ("stream",))))
        state |= {f"blocks.{layer}.{rest}": tensor for layer, tensor in enumerate(layers)}
    return state


def _sizes(spec: Spec) -> dict[str, int]:
    return {"stream": spec.width, "q": spec.width, "k": spec.width, "v": spec.width, "hidden": spec.hidden}


class GrowingVisionTransformer(GeneratedVisionTransformer):
    """A larger model that trains only its growth, for `fit_steps` steps."""

    fit_steps = 0
    fit_lr = 0.0


class LiGO(SourceMethod):
    """Learned linear growth of a smaller trained model."""

    name: ClassVar[str] = "ligo"
    source = "smallest"
    expansion_options: ClassVar[frozenset[str]] = frozenset({"fit", "fit_lr", "layers"})

    fit: int = Field(100, ge=0, description="steps that train the growth; 0: none")
    fit_lr: float = Field(3e-3, gt=0, description="peak learning rate of the growth")
    layers: Literal["stack", "interlace"] = Field(
        "stack", description="initial copy of the layers: stack (0 1 2 0 1 2) or interlace (0 0 1 1 2 2)"
    )

    @torch.no_grad()
    def expand(self, learngene: Learngene | None, spec: Spec, *, seed: int = 0) -> nn.Module:
        """Build the larger model from the initial growth, without fitting."""
        return self._growing(learngene, spec, seed).materialise()

    @property
    def fitting_steps(self) -> int:
        return self.fit

    def adapter(self, learngene: Learngene | None, spec: Spec, *, seed: int = 0) -> GrowingVisionTransformer | None:
        """Build the larger model whose growth is to be fitted, with a fresh head if the classes differ."""
        growing = self._growing(learngene, spec, seed)
        return growing if growing.fit_steps else None

    def _growing(self, learngene: Learngene | None, spec: Spec, seed: int) -> GrowingVisionTransformer:
        made = self.as_made(learngene)
        assert learngene is not None
        source = learngene.spec
        require_plain(self.name, spec)
        require_plain(self.name, source)
        require_order("LiGO", source, spec, grows=True)
        require_same("LiGO", source, spec, "patch")
        require_head_size("LiGO", source, spec)
        inherits_head = "head.weight" in learngene.tensors and spec.classes == source.classes
        frozen = {
            f"source.{name}": tensor
            for name, tensor in learngene.tensors.items()
            if inherits_head or not name.startswith("head.")
        }
        genes = made._start(learngene, spec, seed)
        if not inherits_head:
            head = build(spec, seed=seed).head
            genes |= {f"head.{name}": tensor for name, tensor in head.state_dict().items()}
        growing = GrowingVisionTransformer(spec, genes, partial(grown, source=source), frozen=frozen)
        growing.fit_steps, growing.fit_lr = made.fit, made.fit_lr
        return growing

    def _start(self, learngene: Learngene, spec: Spec, seed: int) -> State:
        source = learngene.spec
        layers = torch.arange(spec.depth)
        copied = layers % source.depth if self.layers == "stack" else layers * source.depth // spec.depth
        weights = torch.eye(source.depth)[copied]
        genes = {f"depth_scaler.{rest}": weights for rest in blocks_of(learngene.tensors, source)["blocks"][0]}
        generator = torch.Generator().manual_seed(seed)
        for (name, small), large in zip(_sizes(source).items(), _sizes(spec).values(), strict=True):
            if large > small:
                rows = torch.rand(large - small, small, generator=generator)
                genes[f"width_scaler.{name}"] = rows / rows.sum(1, keepdim=True)
        return genes

"""Mimetic initialisation: attention initialised to look trained (Trockman & Kolter, ICML 2023, arXiv 2305.09828).

In trained vision transformers the product of query and key weights is close to the identity. The product of value and
projection weights is close to the negative identity. The initialisation imitates both:

    W_Q W_Kᵀ ≈ 0.7 Z₁ + 0.7 I    for every head,        W_V W_proj = 0.4 Z₂ - 0.4 I    for every layer.

Each Z is sampled independently, with entries N(0, 1/d). A singular value decomposition U Σ Vᵀ factors each product. The
first product is approximate: its rank is the head size, so only that many of the largest singular values remain. The
position embedding is sinusoidal. The method needs no learngene.

Every block of any family is initialised so that has square query, key, value and projection weights. Positions of a
prefix, such as those of a class token, keep timm's initialisation. Where positions rotate queries and keys the first
product is another one at every distance, so the method does not apply.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from timm.layers import build_sincos2d_pos_embed
from torch import Tensor, nn

from ray_learngene.errors import UserError
from ray_learngene.methods.base import Learngene, Method
from ray_learngene.models.build import build, meta_model, shapes_of
from ray_learngene.models.layout import chains, family
from ray_learngene.models.specs import Spec


def factors(product: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Factor matrices into `left` and `right` so that `left @ right.T` is the nearest product of that rank.

    Args:
        product: Square matrices `[..., d, d]`.

    Returns:
        `left [..., d, rank]` and `right [..., d, rank]`.
    """
    u, s, vh = torch.linalg.svd(product)
    root = s[..., None, :rank].sqrt()
    return u[..., :rank] * root, vh.mT[..., :rank] * root


class Mimetic(Method):
    """Closed-form attention weights, timm's initialisation elsewhere."""

    name: ClassVar[str] = "mimetic"
    needs_learngene: ClassVar[bool] = False

    alpha1: float = Field(0.7, ge=0, description="noise in the product of query and key weights")
    beta1: float = Field(0.7, ge=0, description="identity in the product of query and key weights")
    alpha2: float = Field(0.4, ge=0, description="noise in the product of value and projection weights")
    beta2: float = Field(0.4, ge=0, description="negative identity in the product of value and projection weights")

    @torch.no_grad()
    def expand(self, learngene: Learngene | None, spec: Spec, *, seed: int = 0) -> nn.Module:
        """Build a model of `spec`; the singular value decompositions take about a minute at width 768, depth 12.

        Raises:
            UserError: the model has no such attention, or its width no 2-D sinusoidal position embedding.
        """
        if spec.width % 4 and "pos_embed" in shapes_of(spec):
            raise UserError(
                f"mimetic needs a width divisible by 4 for its sinusoidal position embedding, got {spec.width}"
            )
        attentions = _attentions(spec)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model: nn.Module = build(spec)
            state = model.state_dict()
            for name, heads in attentions.items():
                self._fill(state, name, heads)
        if "pos_embed" in state:
            positions = state["pos_embed"]
            sines = build_sincos2d_pos_embed(list(spec.grid), spec.width)
            positions[:, positions.shape[1] - len(sines) :].copy_(sines)
        return model

    def _fill(self, state: dict[str, Tensor], name: str, heads: int) -> None:
        """Fill one attention in place; a linear layer's weight is the transpose of the paper's matrix."""
        proj = state[f"{name}.proj.weight"]
        width = len(proj)
        eye = torch.eye(width)

        def noise(*shape: int) -> Tensor:
            return torch.randn(*shape, width, width) / width**0.5

        q, k = factors(self.alpha1 * noise(heads) + self.beta1 * eye, width // heads)  # [heads, width, head size]
        v, out = factors(self.alpha2 * noise() - self.beta2 * eye, width)
        rows = (q.mT.reshape(width, width), k.mT.reshape(width, width), v.mT)
        if f"{name}.qkv.weight" in state:
            state[f"{name}.qkv.weight"].copy_(torch.cat(rows))
        else:
            for each, weight in zip("qkv", rows, strict=True):
                state[f"{name}.{each}_proj.weight"].copy_(weight)
        proj.copy_(out)


def _attentions(spec: Spec) -> dict[str, int]:
    """Return the attention modules of a spec's blocks, with their heads.

    Raises:
        UserError: there are none with square query, key, value and projection weights, or positions rotate queries.
    """
    rules, shapes = family(spec), shapes_of(spec)
    if rules.whole_heads:
        raise UserError(
            f"mimetic: positions change queries and keys of {spec.architecture}, so it would not look trained"
        )
    found = {}
    for block in (block for chain in chains(spec).values() for block in chain):
        name = f"{block}.attn"
        width = shapes.get(f"{name}.proj.weight", (0, 0))[0]
        fused = f"{name}.qkv.weight"
        names = [fused] if fused in shapes else [f"{name}.{each}_proj.weight" for each in "qkv"]
        rows = sum(shapes[each][0] for each in names if each in shapes and shapes[each][1:] == (width,))
        square = shapes.get(f"{name}.proj.weight") == (width, width) and rows == 3 * width
        if not square or (names == [fused] and rules.groups(fused, 0, shapes) != 3):
            raise UserError(f"mimetic: {spec.architecture} has no attention with square weights in {block}")
        found[name] = int(meta_model(spec).get_submodule(name).num_heads)  # type: ignore[arg-type]
    return found

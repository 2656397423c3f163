"""Mimetic initialisation: attention initialised to look trained (Trockman & Kolter, ICML 2023, arXiv 2305.09828).

In trained vision transformers the product of query and key weights is close to the identity. The product of value and
projection weights is close to the negative identity. The initialisation imitates both:

    W_Q W_Kᵀ ≈ 0.7 Z₁ + 0.7 I    for every head,        W_V W_proj = 0.4 Z₂ - 0.4 I    for every layer.

Each Z is sampled independently, with entries N(0, 1/d). A singular value decomposition U Σ Vᵀ factors each product. The
first product is approximate: its rank is the head size, so only that many of the largest singular values remain. The
position embedding is sinusoidal. The method needs no learngene.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from timm.layers import build_sincos2d_pos_embed
from torch import Tensor, nn

from ray_learngene.errors import UserError
from ray_learngene.methods.base import Learngene, Method
from ray_learngene.methods.shared_weights import require_plain
from ray_learngene.models.specs import Spec, build


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
            UserError: the width has no 2-D sinusoidal position embedding.
        """
        require_plain(self.name, spec)
        if spec.width % 4:
            raise UserError(
                f"mimetic needs a width divisible by 4 for its sinusoidal position embedding, got {spec.width}"
            )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model: nn.Module = build(spec)
            state = model.state_dict()
            for layer in range(spec.depth):
                attention = f"blocks.{layer}.attn"
                self._fill(state[f"{attention}.qkv.weight"], state[f"{attention}.proj.weight"], spec)
        side = spec.image // spec.patch
        state["pos_embed"].copy_(build_sincos2d_pos_embed([side, side], spec.width)[None])
        return model

    def _fill(self, qkv: Tensor, proj: Tensor, spec: Spec) -> None:
        """Fill the weights of one layer in place; a linear layer's weight is the transpose of the paper's matrix."""
        width, heads = spec.width, spec.heads
        eye = torch.eye(width)

        def noise(*shape: int) -> Tensor:
            return torch.randn(*shape, width, width) / width**0.5

        q, k = factors(self.alpha1 * noise(heads) + self.beta1 * eye, width // heads)  # [heads, width, head size]
        v, out = factors(self.alpha2 * noise() - self.beta2 * eye, width)
        qkv.copy_(torch.cat([q.mT.reshape(width, width), k.mT.reshape(width, width), v.mT]))
        proj.copy_(out)

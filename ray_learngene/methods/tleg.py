"""TLEG: a transformer as the linear expansion of a learngene (Xia et al., AAAI 2024, arXiv 2312.05614).

Every parameter of a block (weights, biases and norms) is linear in depth. Layer l of L has

    θ_l = θ_B + (l / L) · θ_A,    l = 0 .. L-1.

This holds for the distilled auxiliary model and for every descendant, each with its own L. The learngene is two blocks
and the parameters outside blocks.
"""

from __future__ import annotations

from typing import ClassVar

import torch

from ray_learngene.methods.generated import GeneratingMethod, Genes, State
from ray_learngene.methods.shared_weights import require_same, singletons
from ray_learngene.models.specs import Spec, build


class TLEG(GeneratingMethod):
    """Blocks that are linear in depth."""

    name: ClassVar[str] = "tleg"

    def initial(self, spec: Spec) -> State:
        """Initialise θ_A (`slope`) and θ_B (`offset`) as two timm blocks, except θ_A's norm gains: 0 instead of 1."""
        genes: State = {}
        for name, tensor in build(spec.replace(depth=2)).state_dict().items():
            if name.startswith("blocks.0."):
                genes[name.replace("blocks.0", "offset")] = tensor
            elif name.startswith("blocks.1."):
                gain = name.endswith(("norm1.weight", "norm2.weight"))
                genes[name.replace("blocks.1", "slope")] = tensor.zero_() if gain else tensor
            else:
                genes[name] = tensor
        return genes

    def generate(self, genes: Genes, source: Spec, spec: Spec) -> State:
        require_same("TLEG", source, spec, "width", "heads", "patch", "mlp_ratio")
        state = singletons(genes, source, spec)
        for name, offset in genes.items():
            if name.startswith("offset."):
                rest = name.removeprefix("offset.")
                slope = genes[f"slope.{rest}"]
                for layer in range(spec.depth):
                    state[f"blocks.{layer}.{rest}"] = torch.add(offset, slope, alpha=layer / spec.depth)
        return state

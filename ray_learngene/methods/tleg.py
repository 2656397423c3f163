"""TLEG: a transformer as the linear expansion of a learngene (Xia et al., AAAI 2024, arXiv 2312.05614).

Every parameter of a block (weights, biases and norms) is linear in depth. Layer l of L has

    θ_l = θ_B + (l / L) · θ_A,    l = 0 .. L-1.

This holds for the distilled auxiliary model and for every descendant, each with its own L. The learngene is two blocks
and the parameters outside blocks.
"""

from __future__ import annotations

from typing import ClassVar

import torch

from ray_learngene.errors import UserError
from ray_learngene.methods.generated import GeneratingMethod, Genes, State
from ray_learngene.methods.shared_weights import require_same, singletons
from ray_learngene.models.build import build
from ray_learngene.models.layout import block_lists, chains, layered, reduced, split
from ray_learngene.models.specs import Spec


def _gene(kind: str, chain: str) -> str:
    """Name a block of genes; a model with one chain, `blocks`, has no chain in its names."""
    return kind if chain == "blocks" else f"{kind}.{chain}"


def _block(genes: Genes, kind: str, chain: str) -> State:
    """Collect a block of genes by parameter; empty if the chain has none."""
    prefix = f"{_gene(kind, chain)}."
    return {name.removeprefix(prefix): tensor for name, tensor in genes.items() if name.startswith(prefix)}


class TLEG(GeneratingMethod):
    """Blocks that are linear in depth."""

    name: ClassVar[str] = "tleg"

    def initial(self, spec: Spec) -> State:
        """Initialise θ_A (`slope`) and θ_B (`offset`) as two timm blocks, except θ_A's norm gains: 0 instead of 1."""
        if of_layers := layered(spec):
            raise UserError(f"tleg cannot train {spec.architecture}: {min(of_layers)} holds values of every layer")
        two = reduced(spec, 2)
        lists, names = block_lists(two), dict[str, str]()
        for chain, blocks in chains(two).items():
            names |= {block: _gene(kind, chain) for kind, block in zip(("offset", "slope"), blocks, strict=False)}
        genes: State = {}
        for name, tensor in build(two).state_dict().items():
            block = split(name, lists)
            if block is None:
                genes[name] = tensor
            elif (gene := names.get(f"{block[0]}.{block[1]}")) is not None:
                # the slopes of gains and LayerScale start at 0
                gain = gene.startswith("slope") and tensor.ndim == 1 and not name.endswith("bias")
                genes[f"{gene}.{block[2]}"] = tensor.zero_() if gain else tensor
        return genes

    def generate(self, genes: Genes, source: Spec, spec: Spec) -> State:
        require_same("TLEG", source, spec, "width", "heads", "patch", "mlp_ratio")
        state = singletons(genes, source, spec)
        for chain, blocks in chains(spec).items():
            offsets, slopes = (_block(genes, kind, chain) for kind in ("offset", "slope"))
            for layer, block in enumerate(blocks):
                for rest, offset in offsets.items():
                    moved = torch.add(offset, slopes[rest], alpha=layer / len(blocks)) if slopes else offset
                    state[f"{block}.{rest}"] = moved
        return state

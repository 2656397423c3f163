"""Interpolate: a few anchor blocks, and every layer in between is a blend of the two nearest.

    pip install ./examples/method
    learngene distill --method interpolate:anchors=3 --data digits --ancestry store:ancestries/digits --name digits ...

With two anchors the layers are linear in depth, as TLEG's are.
"""

import math
from typing import ClassVar

import torch
from pydantic import Field

from ray_learngene.methods.generated import GeneratingMethod, Genes, State
from ray_learngene.methods.shared_weights import blocks_of, require_same, singletons
from ray_learngene.models.build import build
from ray_learngene.models.layout import chains, reduced
from ray_learngene.models.specs import Spec


class Interpolate(GeneratingMethod):
    """Blocks that are piecewise linear in depth."""

    name: ClassVar[str] = "interpolate"
    anchors: int = Field(3, ge=2, description="blocks that are trained, in each chain of equal blocks")

    def initial(self, spec: Spec) -> State:
        """Initialise the parameters of a model that consists of the anchors."""
        return dict(build(reduced(spec, self.anchors)).state_dict())

    def generate(self, genes: Genes, source: Spec, spec: Spec) -> State:
        require_same("interpolate", source, spec, "width", "heads", "patch", "mlp_ratio")
        state, anchors = singletons(genes, source, spec), blocks_of(genes, reduced(source, self.anchors))
        for chain, layers in chains(spec).items():
            for number, layer in enumerate(layers):
                place = number * (len(anchors[chain]) - 1) / max(1, len(layers) - 1)
                low, high = (anchors[chain][index] for index in (math.floor(place), math.ceil(place)))
                for name, tensor in low.items():
                    state[f"{layer}.{name}"] = torch.lerp(tensor, high[name], place % 1)
        return state

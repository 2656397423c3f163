"""Interpolate: a few anchor blocks, and every layer in between is a blend of the two nearest.

    pip install ./examples/method
    learngene distill --method interpolate:anchors=3 --data digits --ancestry store:ancestries/digits --name digits ...

With two anchors the layers are linear in depth, as TLEG's are.
"""

from typing import ClassVar

import torch
from pydantic import Field

from ray_learngene.methods.generated import GeneratingMethod, Genes, State
from ray_learngene.methods.shared_weights import blocks_of, require_same, singletons
from ray_learngene.models.specs import Spec, build


class Interpolate(GeneratingMethod):
    """Blocks that are piecewise linear in depth."""

    name: ClassVar[str] = "interpolate"
    anchors: int = Field(3, ge=2, description="blocks that are trained")

    def initial(self, spec: Spec) -> State:
        """Initialise the parameters of a model that consists of the anchors."""
        return dict(build(spec.replace(depth=self.anchors)).state_dict())

    def generate(self, genes: Genes, source: Spec, spec: Spec) -> State:
        require_same("interpolate", source, spec, "width", "heads", "patch", "mlp_ratio")
        state, anchors = singletons(genes, source, spec), blocks_of(genes)
        last = len(anchors) - 1
        for layer in range(spec.depth):
            place = layer * last / max(1, spec.depth - 1)
            low = min(int(place), last - 1)
            for name, tensor in anchors[low].items():
                state[f"blocks.{layer}.{name}"] = torch.lerp(tensor, anchors[low + 1][name], place - low)
        return state

"""LayerDrop: a model that is trained without random layers, so that shallower ones can be cut out of it.

Fan et al., ICLR 2020 (arXiv 1909.11556). In every step each layer is left out with the same probability, for the whole
batch. A descendant takes evenly spaced layers ("every other"); each layer is a whole block, with its own weights.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field
from torch import Tensor, nn

from ray_learngene.errors import UserError
from ray_learngene.methods.elastic import ElasticMethod, ElasticVisionTransformer, require_no_deeper
from ray_learngene.methods.generated import Generator, Genes, State
from ray_learngene.methods.shared_weights import inherited_blocks, kept_layers, require_same, singletons
from ray_learngene.models.features import Read
from ray_learngene.models.layout import chains
from ray_learngene.models.specs import Spec


class _Kept:
    """Generates a model of the given layers."""

    def __init__(self, layers: tuple[int, ...]) -> None:
        self.layers = layers

    def generate(self, genes: Genes, source: Spec, spec: Spec) -> State:
        state = singletons(genes, source, spec)
        return state | inherited_blocks(genes, source, spec, lambda depth, of: self.layers)


class LayerDropVisionTransformer(ElasticVisionTransformer):
    """A model that runs the sampled layers in training and all of them in evaluation."""

    method: LayerDrop
    kept: tuple[int, ...]

    def draw(self, generator: np.random.Generator, done: float) -> None:
        """Sample the layers of the next step; at the end, where the most memory is needed, take all."""
        self.kept = self.method.sample(self.spec.depth, generator) if done < 1 else tuple(range(self.spec.depth))
        self.drawn = (self.spec.replace(depth=len(self.kept)),)

    def forward(self, images: Tensor, read: Read | None = None) -> Any:
        if not self.training:
            return super().forward(images, read)
        ((spec, _),) = self.passes(len(images))
        kept = Generator(_Kept(self.kept), self.spec)
        return self._with_all_parameters(self.forward_as(spec, images, read, generate=kept))


class LayerDrop(ElasticMethod):
    """A whole model, trained without random layers; a descendant is never larger."""

    name: ClassVar[str] = "layerdrop"
    expansion_options: ClassVar[frozenset[str]] = frozenset({"layers"})

    rate: float = Field(0.2, ge=0, lt=1, description="probability that a step leaves a layer out")
    layers: Literal["even", "first"] = Field(
        "even", description="layers of a shallower model: evenly spaced, or the first"
    )

    def sample(self, depth: int, generator: np.random.Generator) -> tuple[int, ...]:
        """Sample the layers of one step; one of them at least."""
        kept = np.flatnonzero(generator.random(depth) >= self.rate)
        return tuple(map(int, kept)) or (int(generator.integers(depth)),)

    def choose(self, source: Spec, generator: np.random.Generator, done: float) -> tuple[Spec, ...]:
        return (source.replace(depth=len(self.sample(source.depth, generator))),)

    def auxiliary(self, spec: Spec, *, drop_path: float = 0.0) -> nn.Module:
        if len(chains(spec)) > 1:
            raise UserError(f"layerdrop drops layers of one kind, {spec.architecture} has several: use supernet")
        super().auxiliary(spec)  # raises if the model cannot be generated
        return LayerDropVisionTransformer(self, spec, drop_path=drop_path)

    def generate(self, genes: Genes, source: Spec, spec: Spec) -> State:
        require_same(self.name, source, spec, "width", "heads", "patch", "mlp_ratio")
        require_no_deeper(self.name, source, spec)
        return _Kept(tuple(kept_layers(spec.depth, source.depth, self.layers))).generate(genes, source, spec)

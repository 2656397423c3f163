"""Any-size: shared stages, trained at every depth (and width) that they will be expanded to. Our own method.

SWS trains its stages at one depth, so an expansion to another depth is a network that was never trained. Any-size cuts
the batch of each step into parts. Each part passes through a sub-model of another depth; the depths cover the range
evenly. Early in training the range holds only shallow sub-models: their steps are cheap and train the same blocks. The
range grows as training proceeds.

A block repeated r times adds partly coherent residuals. Every residual branch of a model of L layers is therefore
scaled by (L0 / L)^step. The scale folds into `attn.proj` and `mlp.fc2`, so descendants stay plain.

Once the stages are trained, `untied` gives every layer of the auxiliary a block of its own, a copy of its stage's, and
trains all depths further. A shallower model takes the first blocks of each stage. Prior work is in docs/methods.md,
ablations are in docs/experiments.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Self

import numpy as np
import torch
from pydantic import Field, model_validator

from ray_learngene.config.base import LATER
from ray_learngene.methods.base import Numbers
from ray_learngene.methods.elastic import (
    ElasticMethod,
    at_width,
    deepest_depth,
    nested,
    nested_widths,
    require_nested,
    smallest_depth,
)
from ray_learngene.methods.generated import Genes, State
from ray_learngene.methods.one_pass import SubModel, layers_among
from ray_learngene.methods.shared_weights import inherited_blocks, nearest_layers, require_same, singletons
from ray_learngene.methods.sws import layers_per_stage, stage_of_layer
from ray_learngene.models.build import build, shapes_of
from ray_learngene.models.layout import block_lists, chains, family, reduced, split
from ray_learngene.models.specs import Spec

CORRECTION = "correction."  # before the name of the parameter of the auxiliary's layer that a gene corrects


def untied_layers(depth: int, of: int, stages: int) -> list[int]:
    """Choose the untied block of each layer of a model: the first blocks of each stage; the last of it repeats.

    Args:
        of: Untied blocks, the layers of the auxiliary.
    """
    layout = (1,) * min(stages, of)
    firsts = np.cumsum((0, *layers_per_stage(of, layout)))
    return [
        min(int(first) + layer, int(end) - 1)
        for first, end, layers in zip(firsts, firsts[1:], layers_per_stage(depth, layout), strict=False)
        for layer in range(layers)
    ]


class AnySize(ElasticMethod):
    """Stages that all depths share, trained at all depths at once."""

    name: ClassVar[str] = "any-size"
    split: ClassVar[bool] = True

    stages: int = Field(3, ge=1, description="shared blocks; capped at the auxiliary's depth, so that all are trained")
    parts: int = Field(4, ge=1, description="parts of a batch, each at its own depth; use a divisor of micro-batches")
    shallowest: int = Field(3, ge=1, description="smallest depth to train; the largest is the auxiliary's")
    growth: float = Field(
        3, ge=0, description="exponent of the range of depths over training time; 0: the whole range from the start"
    )
    step: float = Field(0.5, ge=0, description="exponent of a residual branch's scale; 0: no scaling, 1: an Euler step")
    widths: Numbers = Field((), description="widths to train in addition to the auxiliary's own, e.g. 16-32")
    corrections: float = Field(
        0,
        ge=0,
        description="add a correction for every layer of the auxiliary, 0 at the start, times this; 0: none",
        json_schema_extra=LATER,
    )
    untied: bool = Field(
        False,
        description="a block for every layer of the auxiliary, instead of one for a stage; use it with --start",
        json_schema_extra=LATER,
    )

    @model_validator(mode="after")
    def _one_kind_of_freedom(self) -> Self:
        if self.untied and self.corrections:
            raise ValueError("untied layers need no corrections: leave one of the two out")
        return self

    def initial(self, spec: Spec) -> State:
        if self.untied:
            return self.started(build(reduced(spec, self.stages)).state_dict(), spec)
        genes = dict(build(reduced(spec, self.stages)).state_dict())
        if self.corrections:
            lists = block_lists(spec)
            genes |= {
                CORRECTION + name: torch.zeros(shape) for name, shape in shapes_of(spec).items() if split(name, lists)
            }
        return genes

    def started(self, genes: Genes, spec: Spec) -> State:
        """Return the genes to start from: untied layers begin as copies of their stage's block."""
        stored = reduced(spec, self.stages)
        if not self.untied or genes.keys() != shapes_of(stored).keys():
            return dict(genes)
        tied = inherited_blocks(genes, stored, spec, lambda depth, of: stage_of_layer(depth, (1,) * of))
        return singletons(genes, spec, spec) | tied

    def choose(self, source: Spec, generator: np.random.Generator, done: float) -> tuple[Spec, ...]:
        """Split the range of depths into `parts` and sample a depth from each; at the end take the deepest of each.

        Widths alternate over the parts, in random order.
        """
        shallowest = smallest_depth(source, self.shallowest)
        deepest = deepest_depth(shallowest, source.depth, done, self.growth)
        within = generator.random(self.parts) if done < 1 else 1 - 1e-9
        share = (np.arange(self.parts) + within) / self.parts
        depths = shallowest + np.floor(share * (deepest + 1 - shallowest)).astype(int)
        widths = nested_widths(self.name, source, self.widths)
        turns = generator.permutation(np.resize(generator.permutation(widths), self.parts))
        return tuple(at_width(source, int(width), int(depth)) for width, depth in zip(turns, depths, strict=True))

    def generate(self, genes: Genes, source: Spec, spec: Spec) -> State:
        require_same(self.name, source, spec, "patch", "mlp_ratio")
        require_nested(self.name, source, spec)
        return self._generated(genes, source, spec, self._scale(source, spec))

    def unscaled(self, genes: Genes, source: Spec, spec: Spec) -> State:
        return self._generated(genes, source, spec, 1)

    def sub_models(self, source: Spec, deepest: Spec, specs: Sequence[Spec]) -> Sequence[SubModel]:
        if self.corrections or len(chains(source)) > 1 or any(spec.width != deepest.width for spec in specs):
            return ()
        of = self._stored(source).depth
        blocks = [self._block_of_layer(spec.depth, of) for spec in specs]
        found = [layers_among(each, self._block_of_layer(deepest.depth, of)) for each in blocks]
        return [
            SubModel(layers, self._scale(source, spec)) for spec, layers in zip(specs, found, strict=True) if layers
        ]

    def _scale(self, source: Spec, spec: Spec) -> float:
        """Return the factor of residual branches: 1 at L0, the middle of the trained depths."""
        return float((source.depth / (2 * spec.depth)) ** self.step)

    def _generated(self, genes: Genes, source: Spec, spec: Spec, scale: float) -> State:
        stored = self._stored(source)
        lists, ends = block_lists(stored), family(source).branch_ends

        def scaled(tensors: Genes) -> Genes:
            if scale == 1:
                return tensors
            return {
                name: tensor * scale if (block := split(name, lists)) and block[2] in ends else tensor
                for name, tensor in tensors.items()
            }

        state = singletons(genes, source, spec)
        state |= inherited_blocks(scaled(genes), stored, spec, self._block_of_layer)
        own = {name.removeprefix(CORRECTION): tensor for name, tensor in genes.items() if name.startswith(CORRECTION)}
        for name, correction in inherited_blocks(scaled(own), source, spec, nearest_layers).items():
            state[name] = state[name] + self.corrections * correction
        return nested(state, source, spec)

    def _stored(self, source: Spec) -> Spec:
        return source if self.untied else reduced(source, self.stages)

    def _block_of_layer(self, depth: int, of: int) -> Sequence[int]:
        return untied_layers(depth, of, self.stages) if self.untied else stage_of_layer(depth, (1,) * of)

"""Elastic supernet: one nested network whose slices are the descendants (OFA, AutoFormer, MatFormer).

Cai et al., ICLR 2020 (arXiv 1908.09791); Chen et al., ICCV 2021 (2107.00651); Devvrit et al., NeurIPS 2024
(2310.07707). Every step trains the largest, the smallest and random slices on the same images, which is the sandwich
rule (Yu & Huang, ICCV 2019, 1903.05134). The ancestry model teaches all of them. With `growth` the largest slice grows
from the smallest during training, as in GrowTAS (2512.12296).
"""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from ray_learngene.config.base import LATER
from ray_learngene.methods.base import Numbers
from ray_learngene.methods.elastic import (
    ElasticMethod,
    at_width,
    deepest_depth,
    nested,
    nested_widths,
    require_nested,
    require_no_deeper,
    smallest_depth,
)
from ray_learngene.methods.generated import Genes, State
from ray_learngene.methods.shared_weights import inherited_blocks, kept_layers, require_same, singletons
from ray_learngene.models.specs import Spec


class Supernet(ElasticMethod):
    """A network of the auxiliary's size that is trained in all its slices; a descendant is never larger."""

    name: ClassVar[str] = "supernet"

    shallowest: int = Field(3, ge=1, description="layers of the smallest slice to train")
    widths: Numbers = Field((), description="widths to train in addition to the auxiliary's own, e.g. 16-32")
    random: int = Field(1, ge=0, description="random slices in each step, in addition to the largest and the smallest")
    layers: Literal["even", "first"] = Field("even", description="layers of a slice: evenly spaced, or the first")
    growth: float = Field(
        0,
        ge=0,
        description="exponent of the largest depth over training time; 0: always the whole",
        json_schema_extra=LATER,
    )

    def choose(self, source: Spec, generator: np.random.Generator, done: float) -> tuple[Spec, ...]:
        widths = nested_widths(self.name, source, self.widths)
        shallowest = smallest_depth(source, self.shallowest)
        deepest = int(deepest_depth(shallowest, source.depth, done, self.growth))
        drawn = [
            at_width(source, int(generator.choice(widths)), int(generator.integers(shallowest, deepest + 1)))
            for _ in range(self.random)
        ]
        return (source.replace(depth=deepest), at_width(source, widths[0], shallowest), *drawn)

    def generate(self, genes: Genes, source: Spec, spec: Spec) -> State:
        require_same(self.name, source, spec, "patch", "mlp_ratio")
        require_nested(self.name, source, spec)
        require_no_deeper(self.name, source, spec)
        state = singletons(genes, source, spec)
        state |= inherited_blocks(genes, source, spec, lambda depth, of: kept_layers(depth, of, self.layers))
        return nested(state, source, spec)

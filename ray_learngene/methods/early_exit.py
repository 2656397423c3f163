"""Early exits: the first layers of one model are all the smaller ones, each with a norm and a head of its own.

A model of d layers is the first d of the deepest. So one forward pass gives the logits of every depth, and a step
trains all depths on all images for the price of the deepest. The deepest grows during the first part of the training:
steps are cheap while only shallow layers are trained.

Exits with heads of their own: Lee et al., AISTATS 2015 (arXiv 1409.5185); BranchyNet, Teerapittayanon et al., ICPR 2016
(1709.01686); MSDNet, Huang et al., ICLR 2018 (1703.09844). Growing depth: docs/methods.md. Ours is their use for plain
models of every depth.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, ClassVar

import ray_learngene.models.timm_import  # noqa: F401  isort:skip  (before the first timm import)
import numpy as np
import torch
from pydantic import Field
from timm.models.beit import Beit
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from ray_learngene.errors import UserError
from ray_learngene.methods.elastic import ElasticMethod, ElasticVisionTransformer, deepest_depth, smallest_depth
from ray_learngene.methods.generated import Genes, State, prototype
from ray_learngene.methods.shared_weights import inherited_blocks, is_head, nearest_layers, require_same, singletons
from ray_learngene.models.build import build, meta_model, shapes_of
from ray_learngene.models.features import Read
from ray_learngene.models.layout import block_lists, chains, family, split
from ray_learngene.models.specs import Spec
from ray_learngene.models.swapping import swapped

EXIT = ".exit.{depth}"  # after the name of a parameter that follows the blocks of a shallower model


@lru_cache(maxsize=64)
def tail_of(spec: Spec) -> tuple[str, ...]:
    """Return the names of the parameters that follow the blocks: norms and head."""
    names, lists = list(shapes_of(spec)), block_lists(spec)
    last = max(place for place, name in enumerate(names) if split(name, lists))
    return tuple(names[last + 1 :])


class EarlyExitVisionTransformer(ElasticVisionTransformer):
    """A model that returns the logits of all its depths in training and those of the deepest in evaluation."""

    method: EarlyExit

    def passes(self, batch: int) -> tuple[tuple[Spec, int], ...]:
        return ((self.drawn[0], batch),)

    def forward(self, images: Tensor, read: Read | None = None) -> Any:
        if not self.training:
            return super().forward(images, read)
        first, *others = self.run_as(self.drawn[0], images)
        return self._with_all_parameters(first), *others

    def run_as(self, spec: Spec, images: Tensor) -> tuple[Tensor, ...]:
        """Return the logits `[B, classes]` of a depth and of all trained ones below it, the deepest first."""
        model: Any = prototype(spec, self.drop_path, self.compiled, self.checkpointed, str(images.device))
        model.train(self.training)
        depths = range(self.method.smallest(self.spec), spec.depth + 1)
        genes = self.genes()
        with swapped(model, self.state_of(spec, images.device.type)):
            layers = model.forward_intermediates(
                images,
                indices=[depth - 1 for depth in depths],
                return_prefix_tokens=True,
                output_fmt="NLC",
                intermediates_only=True,
            )
            return tuple(
                self._logits(model, tokens, self.method.tail(genes, self.spec, depth))
                for depth, tokens in reversed([*zip(depths, layers, strict=True)])
            )

    def _logits(self, model: Any, tokens: Any, tail: State) -> Tensor:
        if isinstance(tokens, tuple):  # timm takes class and register tokens apart
            patches, others = tokens
            tokens = torch.cat([others, patches], dim=1)
        with swapped(model, tail):
            logits: Tensor = model.forward_head(model.norm(tokens))
        return logits


class EarlyExit(ElasticMethod):
    """One model with an exit behind every layer; a deeper one repeats layers."""

    name: ClassVar[str] = "early-exit"

    shallowest: int = Field(3, ge=1, description="layers of the first exit; the last is behind the whole auxiliary")
    growth: float = Field(2, ge=0, description="exponent of the deepest exit over training time; 0: all from the start")
    until: float = Field(0.8, gt=0, le=1, description="share of the training after which all exits are trained")

    def smallest(self, source: Spec) -> int:
        """Return the depth of the first exit."""
        return smallest_depth(source, self.shallowest)

    def choose(self, source: Spec, generator: np.random.Generator, done: float) -> tuple[Spec, ...]:
        """Take every depth up to the deepest that has its turn, this one first."""
        first = self.smallest(source)
        deepest = deepest_depth(first, source.depth + 1, min(1.0, done / self.until), self.growth)
        return tuple(source.replace(depth=depth) for depth in range(min(int(deepest), source.depth), first - 1, -1))

    def initial(self, spec: Spec) -> State:
        """Initialise the whole model, and as many heads and norms as there are smaller exits."""
        state = super().initial(spec)
        one_layer = spec.replace(depth=1)
        for depth in range(self.smallest(spec), spec.depth):
            made = build(one_layer).state_dict()
            state |= {name + EXIT.format(depth=depth): made[name] for name in tail_of(one_layer)}
        return state

    def tail(self, genes: Genes, source: Spec, depth: int) -> State:
        """Return norms and head of the exit that is nearest to a depth; without a head if the genes hold none."""
        depth = max(self.smallest(source), depth)
        exit_ = EXIT.format(depth=depth) if depth < source.depth else ""
        return {name: genes[name + exit_] for name in tail_of(source) if name + exit_ in genes}

    def generate(self, genes: Genes, source: Spec, spec: Spec) -> State:
        """Take the first layers; a model deeper than the source repeats layers, whose branches share their scale."""
        require_same(self.name, source, spec, "width", "heads", "patch", "mlp_ratio")
        layers = list(range(spec.depth)) if spec.depth <= source.depth else nearest_layers(spec.depth, source.depth)
        state = singletons(genes, source, spec)
        tail = self.tail(genes, source, spec.depth)
        state |= {name: tail[name] for name in tail if spec.classes == source.classes or not is_head(name, source)}
        state |= inherited_blocks(genes, source, spec, lambda depth, of: layers)
        return self._repeated(state, spec, layers)

    def _repeated(self, state: State, spec: Spec, layers: Sequence[int]) -> State:
        """Divide the residual branches of a layer by the number of its repetitions."""
        times, lists, ends = Counter(layers), block_lists(spec), family(spec).branch_ends
        if max(times.values()) == 1:
            return state
        ((_, names),) = chains(spec).items()
        count = {block: times[layer] for block, layer in zip(names, layers, strict=True)}
        return {
            name: tensor / count[f"{found[0]}.{found[1]}"]
            if (found := split(name, lists)) and found[2] in ends
            else tensor
            for name, tensor in state.items()
        }

    def auxiliary(self, spec: Spec, *, drop_path: float = 0.0) -> nn.Module:
        if not isinstance(meta_model(spec), VisionTransformer | Eva | Beit) or len(chains(spec)) > 1:
            raise UserError(f"early-exit needs a plain vision transformer, Eva or BEiT: {spec.architecture} is none")
        if not spec.classes:
            raise UserError("early-exit has a head for every depth: teach it by logits or labels, not by features")
        super().auxiliary(spec)  # raises if the model cannot be generated
        return EarlyExitVisionTransformer(self, spec, drop_path=drop_path)

"""Early exits: the first layers of one model are all the smaller ones, each with a norm and a head of its own.

A model of d layers is the first d of the deepest one. So one forward pass through the deepest gives what the exits of
smaller ones read, and a step trains all depths on all images. The deepest grows during the first part of the training:
steps are cheap while only shallow layers are trained. With `own` each exit has a last block of its own too.

Exits with heads of their own: Lee et al., AISTATS 2015 (arXiv 1409.5185); BranchyNet, Teerapittayanon et al., ICPR 2016
(1709.01686); MSDNet, Huang et al., ICLR 2018 (1703.09844). Growing depth: docs/methods.md. Ours is their use for plain
models of every depth.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any, ClassVar, Self

import ray_learngene.models.timm_import  # noqa: F401  isort:skip  (before the first timm import)
import numpy as np
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

EXIT = ".exit.{depth}"  # after the name of a parameter of the norm or head of a shallower model
OWN = "own.{depth}."  # before the name of a parameter of its last block


@lru_cache(maxsize=64)
def tail_of(spec: Spec) -> tuple[str, ...]:
    """Return the names of the parameters that follow the blocks: norms and head."""
    names, lists = list(shapes_of(spec)), block_lists(spec)
    last = max(place for place, name in enumerate(names) if split(name, lists))
    return tuple(names[last + 1 :])


class EarlyExitVisionTransformer(ElasticVisionTransformer):
    """A model that returns the logits of several depths in training and those of the deepest in evaluation."""

    method: EarlyExit

    def passes(self, batch: int) -> tuple[tuple[Any, int], ...]:
        """Return the sampled depths as one pass; which ones they are but for the deepest makes no difference to it."""
        deepest, *others = self.drawn
        first = self.method.smallest(self.spec)
        return (((deepest, *(deepest.replace(depth=first + place) for place in range(len(others)))), batch),)

    def run_as(self, sampled: Any, images: Tensor) -> tuple[Tensor, ...]:
        self.drawn = sampled
        return self.exits(images)

    def forward(self, images: Tensor, read: Read | None = None) -> Any:
        if not self.training:
            return super().forward(images, read)
        first, *others = self.exits(images)
        return self._with_all_parameters(first), *others

    def exits(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the logits `[B, classes]` of the sampled depths, in one pass through the deepest."""
        deepest, *others = self.drawn
        model: Any = prototype(deepest, self.drop_path, self.compiled, self.checkpointed, str(images.device))
        model.train(self.training)
        ((_, names),) = chains(deepest).items()
        blocks = {spec.depth: model.get_submodule(names[spec.depth - 1]) for spec in others}
        genes, logits = self.genes(), list[Tensor]()
        with swapped(model, self.state_of(deepest, images.device.type)):
            with _Seen(blocks.values()) as seen:
                logits.append(model(images))
            for depth, block in blocks.items():
                tokens = seen.outputs[block]
                if own := self.method.last_block(genes, depth):
                    (given, named) = seen.inputs[block]
                    with swapped(block, own):
                        tokens = block(*given, **named)
                with swapped(model, self.method.tail(genes, self.spec, depth)):
                    logits.append(model.forward_head(model.norm(tokens)))
        return tuple(logits)


class _Seen:
    """What blocks read and return while this is entered."""

    def __init__(self, blocks: Iterable[nn.Module]) -> None:
        self.inputs, self.outputs = dict[nn.Module, tuple[Any, Any]](), dict[nn.Module, Tensor]()
        self._handles = [block.register_forward_hook(self._keep, with_kwargs=True) for block in blocks]

    def _keep(self, block: nn.Module, given: Any, named: Any, output: Tensor) -> None:
        self.inputs[block], self.outputs[block] = (given, named), output

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()


class EarlyExit(ElasticMethod):
    """One model with an exit behind every layer; a deeper one repeats layers."""

    name: ClassVar[str] = "early-exit"

    shallowest: int = Field(3, ge=1, description="layers of the first exit; the last is behind the whole auxiliary")
    exits: int = Field(0, ge=0, description="exits of a step: the deepest, the first and random ones; 0: all of them")
    own: bool = Field(False, description="exits have a last block of their own, not only a norm and a head")
    growth: float = Field(2, ge=0, description="exponent of the deepest exit over training time; 0: all from the start")
    until: float = Field(0.8, gt=0, le=1, description="share of the training after which all exits are trained")

    def smallest(self, source: Spec) -> int:
        """Return the depth of the first exit."""
        return smallest_depth(source, self.shallowest)

    def choose(self, source: Spec, generator: np.random.Generator, done: float) -> tuple[Spec, ...]:
        """Sample exits up to the deepest that has its turn, this one first."""
        first = self.smallest(source)
        grown = deepest_depth(first, source.depth + 1, min(1.0, done / self.until), self.growth)
        deepest = min(int(grown), source.depth)
        drawn = generator.integers(first, deepest + 1, max(0, self.exits - 2)).tolist()
        depths = {deepest, first, *drawn} if self.exits else {*range(first, deepest + 1)}
        return tuple(source.replace(depth=depth) for depth in sorted(depths, reverse=True)[: self.exits or None])

    def initial(self, spec: Spec) -> State:
        """Initialise the whole model, and what the exits of smaller ones have for themselves."""
        state, one_layer = super().initial(spec), spec.replace(depth=1)
        lists, tail = block_lists(one_layer), tail_of(one_layer)
        for depth in range(self.smallest(spec), spec.depth):
            for name, tensor in build(one_layer).state_dict().items():
                if name in tail:
                    state[name + EXIT.format(depth=depth)] = tensor
                elif self.own and (found := split(name, lists)):
                    state[OWN.format(depth=depth) + found[2]] = tensor
        return state

    def tail(self, genes: Genes, source: Spec, depth: int) -> State:
        """Return norms and head of the exit that is nearest to a depth; without a head if the genes hold none."""
        depth = max(self.smallest(source), depth)
        exit_ = EXIT.format(depth=depth) if depth < source.depth else ""
        return {name: genes[name + exit_] for name in tail_of(source) if name + exit_ in genes}

    def last_block(self, genes: Genes, depth: int) -> State:
        """Return the parameters of the own block of an exit; none if it has no such block."""
        own = OWN.format(depth=depth)
        return {name.removeprefix(own): tensor for name, tensor in genes.items() if name.startswith(own)}

    def generate(self, genes: Genes, source: Spec, spec: Spec) -> State:
        """Take the first layers and an exit; a model deeper than the source repeats layers, which share their scale."""
        require_same(self.name, source, spec, "width", "heads", "patch", "mlp_ratio")
        layers = list(range(spec.depth)) if spec.depth <= source.depth else nearest_layers(spec.depth, source.depth)
        state, tail = singletons(genes, source, spec), self.tail(genes, source, spec.depth)
        state |= {name: tail[name] for name in tail if spec.classes == source.classes or not is_head(name, source)}
        state |= inherited_blocks(genes, source, spec, lambda depth, of: layers)
        ((_, blocks),) = chains(spec).items()
        own = self.last_block(genes, max(self.smallest(source), spec.depth))
        state |= {f"{blocks[-1]}.{name}": tensor for name, tensor in own.items()}
        return self._repeated(state, spec, blocks, layers)

    def _repeated(self, state: State, spec: Spec, blocks: Sequence[str], layers: Sequence[int]) -> State:
        """Divide the residual branches of a layer by the number of its repetitions."""
        times, lists, ends = Counter(layers), block_lists(spec), family(spec).branch_ends
        if max(times.values()) == 1:
            return state
        count = {block: times[layer] for block, layer in zip(blocks, layers, strict=True)}
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

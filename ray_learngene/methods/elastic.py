"""Elastic auxiliary models: every step trains sub-models of several sizes; smaller widths are nested slices."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from ray_learngene.errors import UserError
from ray_learngene.methods.base import Learngene
from ray_learngene.methods.generated import (
    GeneratedVisionTransformer,
    GeneratingMethod,
    Generator,
    Genes,
    State,
    require_no_statistics,
)
from ray_learngene.methods.one_pass import OnePass, SubModel, fits_one_pass
from ray_learngene.methods.shared_weights import require_head_size, sliced
from ray_learngene.models.build import build
from ray_learngene.models.features import VECTOR, Read
from ray_learngene.models.specs import Spec, size_of


class ElasticVisionTransformer(GeneratedVisionTransformer):
    """A generated model that runs sampled sub-models in training and its own spec, the largest, in evaluation.

    Attributes:
        drawn: Specs of the sub-models sampled for this step.
    """

    def __init__(self, method: ElasticMethod, spec: Spec, *, drop_path: float = 0.0) -> None:
        super().__init__(spec, method.initial(spec), Generator(method, spec), drop_path=drop_path)
        self.method = method
        self.drawn: tuple[Spec, ...] = (spec,)

    def draw(self, generator: np.random.Generator, done: float) -> None:
        """Sample the sub-models of the next step; every rank samples the same ones.

        Args:
            done: Share of the training that is done, 0 to 1.
        """
        self.drawn = self.method.choose(self.spec, generator, done)

    def passes(self, batch: int) -> tuple[tuple[Any, int], ...]:
        """List the forward passes of this step over a batch: each spec with the number of images it sees."""
        count = len(self.drawn)
        return tuple(
            (spec, len(range(first, batch, count)) if self.method.split else batch)
            for first, spec in enumerate(self.drawn)
        )

    def run_as(self, sampled: Any, images: Tensor) -> Any:
        """Run one of the `passes`; FLOPs are counted by it."""
        return self.forward_as(sampled, images)

    def forward(self, images: Tensor, read: Read | None = None) -> Any:
        """Return logits `[B, classes]`, or features; in training without `split`, one such value per sampled spec."""
        if not self.training:
            return super().forward(images, read)
        if not self.method.split:
            first, *others = (self.forward_as(spec, images, read) for spec in self.drawn)
            return self._with_all_parameters(first), *others
        # every n-th image: if micro-batches are multiples of n, an image goes to the same size on any number of ranks
        if read is None and (together := self._together()):
            state = self.state_of(together.deepest, images.device.type, self._unscaled)
            return self._with_all_parameters(together(state, images))
        indices, count = torch.arange(len(images), device=images.device), len(self.drawn)
        parts = [indices[first::count] for first in range(count)]
        found = [self.forward_as(spec, images[part], read) for spec, part in zip(self.drawn, parts, strict=True)]
        order = torch.cat(parts).argsort()
        if read is None:
            return self._with_all_parameters(torch.cat(found)[order])
        return self._with_all_parameters({name: torch.cat([each[name] for each in found])[order] for name in found[0]})

    def _together(self) -> OnePass | None:
        """Return the one pass in which the sampled sub-models run; None if each needs its own."""
        if self.compiled or len(self.drawn) < 2:
            return None
        deepest = max(self.drawn, key=lambda spec: spec.depth)
        models = self.method.sub_models(self.spec, deepest, self.drawn)
        if len(models) < len(self.drawn) or not fits_one_pass(deepest, models):
            return None
        return OnePass(deepest, models, self.drop_path, checkpointed=self.checkpointed)

    def _unscaled(self, genes: Genes, spec: Spec) -> State:
        return self.method.unscaled(genes, self.spec, spec)

    def _with_all_parameters(self, logits: Any) -> Any:
        """Make logits, or features, depend on every parameter, so that those of no sampled spec get a gradient of 0.

        Without a gradient ZeRO-3 reuses that of an earlier step, and a single-process optimizer skips the parameter.
        """
        if isinstance(logits, dict):
            return {**logits, VECTOR: self._with_all_parameters(logits[VECTOR])}
        return logits + 0 * torch.stack([parameter.sum() for parameter in self.parameters()]).sum()


class ElasticMethod(GeneratingMethod):
    """A method that trains its genes at many sizes at once."""

    # True: the sub-models of a step share its images; False: each sees all of them
    split: ClassVar[bool] = False

    def initial(self, spec: Spec) -> State:
        return dict(build(spec).state_dict())

    def outside(self, learngene: Learngene | None, spec: Spec) -> str | None:
        """Compare depth and width with those that `choose` samples, if options say which these are."""
        made: Any = None if learngene is None else self.as_made(learngene)
        if learngene is None or not hasattr(made, "shallowest"):
            return None
        source = learngene.spec
        shallowest = smallest_depth(source, made.shallowest)
        widths = nested_widths(self.name, source, getattr(made, "widths", ()))
        if not shallowest <= spec.depth <= source.depth:
            if shallowest == source.depth:
                return f"depth {spec.depth} is not {source.depth}, the only depth that {self.name} was trained at"
            there = f"{shallowest} to {source.depth}"
            return f"depth {spec.depth} is outside of {there}, the depths that {self.name} was trained at"
        if spec.width not in widths:
            return f"width {spec.width} is none that {self.name} was trained at: {', '.join(map(str, widths))}"
        return None

    @abstractmethod
    def choose(self, source: Spec, generator: np.random.Generator, done: float) -> tuple[Spec, ...]:
        """Sample the specs of one step.

        Args:
            done: Share of the training that is done, 0 to 1. At 1 the specs are those that need the most memory.
        """

    def sub_models(self, source: Spec, deepest: Spec, specs: Sequence[Spec]) -> Sequence[SubModel]:
        """Describe sub-models as parts of the deepest one; fewer than `specs` if they are none."""
        return ()

    def unscaled(self, genes: Genes, source: Spec, spec: Spec) -> State:
        """Generate a state dict as `generate` does, but without the scales that `sub_models` states."""
        return self.generate(genes, source, spec)

    def auxiliary(self, spec: Spec, *, drop_path: float = 0.0) -> nn.Module:
        require_no_statistics(self.name, spec)
        self.choose(spec, np.random.default_rng(0), 0.0)  # raises before training if the options do not fit the spec
        return ElasticVisionTransformer(self, spec, drop_path=drop_path)


def nested_widths(method: str, source: Spec, widths: tuple[int, ...]) -> tuple[int, ...]:
    """Check the widths that a method trains and return them sorted, with the source's own.

    Raises:
        UserError: a width is larger than the source's or is not a multiple of its head size.
    """
    head_size = source.width // source.heads
    headless = source.architecture is not None and not size_of(source).heads
    for width in widths:
        if width > source.width or (width % head_size and not headless):
            raise UserError(
                f"{method}: widths are multiples of the head size {head_size} up to {source.width}, not {width}"
            )
    return tuple(sorted({*widths, source.width}))


def smallest_depth(source: Spec, shallowest: int) -> int:
    """Return the smallest depth to train: every stage has one block at least."""
    return max(min(shallowest, source.depth), len(source.depths or (1,)))


def deepest_depth(shallowest: int, depth: int, done: float, growth: float) -> float:
    """Return the end of a range of depths that grows from `shallowest` to `depth`: `done`, 0 to 1, to this power."""
    return shallowest + (depth - shallowest) * done**growth


def at_width(source: Spec, width: int, depth: int) -> Spec:
    """Return the source's spec at another width and depth, with the same head size."""
    return source.replace(width=width, heads=width * source.heads // source.width, depth=depth)


def require_nested(method: str, source: Spec, spec: Spec) -> None:
    """Check that a spec is a slice of the source.

    Raises:
        UserError: the width is larger or the head size differs; the message gives both values.
    """
    if spec.width > source.width:
        raise UserError(
            f"{method} cannot grow the width: the learngene has width {source.width}, the spec asks for {spec.width}"
        )
    require_head_size(method, source, spec)


def require_no_deeper(method: str, source: Spec, spec: Spec) -> None:
    """Check that a spec is no deeper than the source."""
    if spec.depth > source.depth:
        raise UserError(f"{method} cannot grow: the learngene has depth {source.depth}, the spec asks for {spec.depth}")


def nested(tensors: Mapping[str, Tensor], source: Spec, spec: Spec) -> dict[str, Tensor]:
    """Slice the first channels, heads and hidden units of every parameter: views, by name.

    Query, key and value are sliced separately, so that the first heads stay whole.
    """
    if (spec.width, spec.hidden) == (source.width, source.hidden):
        return dict(tensors)
    return sliced(tensors, source, spec, lambda tensor, dim, size, axis: _first(tensor, dim, size, axis.groups))


def _first(tensor: Tensor, dim: int, size: int, groups: int) -> Tensor:
    """Take the first indices of each group of an axis, `size` in all."""
    if groups == 1:
        return tensor.narrow(dim, 0, size)
    return torch.cat([part.narrow(dim, 0, size // groups) for part in tensor.chunk(groups, dim)], dim)


def draw_step(module: nn.Module, seed: int, step: int, total_steps: int) -> None:
    """Sample this step's sub-models of an elastic module; every rank samples the same ones.

    The first step takes the sub-models that need the most memory, so that an out-of-memory error comes at once.
    """
    draw = getattr(module, "draw", None)
    if draw is not None:
        draw(np.random.default_rng([seed, step]), (step or total_steps) / total_steps)

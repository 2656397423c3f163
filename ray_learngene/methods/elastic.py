"""Auxiliary models that are models of several sizes in every step, and the nested slices that make a width smaller."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from ray_learngene.errors import UserError
from ray_learngene.methods.generated import GeneratedVisionTransformer, GeneratingMethod, Generator
from ray_learngene.methods.shared_weights import require_head_size
from ray_learngene.models.specs import Spec


class ElasticVisionTransformer(GeneratedVisionTransformer):
    """A generated model that is, in training, the models of the specs that were drawn last.

    In evaluation it is the model of its own spec, the largest.

    Attributes:
        drawn: The specs of this step.
    """

    def __init__(self, method: ElasticMethod, spec: Spec, *, drop_path: float = 0.0) -> None:
        super().__init__(spec, method.initial(spec), Generator(method, spec), drop_path=drop_path)
        self.method = method
        self.drawn: tuple[Spec, ...] = (spec,)

    def draw(self, generator: np.random.Generator, done: float) -> None:
        """Draw the specs of the next step, of a training of which so much (0 to 1) is done; alike on every worker."""
        self.drawn = self.method.choose(self.spec, generator, done)

    def passes(self, batch: int) -> tuple[tuple[Spec, int], ...]:
        """The forward passes of this step over a batch: specs with the number of images each sees."""
        count = len(self.drawn)
        return tuple(
            (spec, len(range(first, batch, count)) if self.method.split else batch)
            for first, spec in enumerate(self.drawn)
        )

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, ...]:  # type: ignore[override]
        """Logits `[B, classes]` in evaluation and where a batch is split, else one for each spec drawn."""
        if not self.training:
            return super().forward(images)
        if not self.method.split:
            first, *others = (self.forward_as(spec, images) for spec in self.drawn)
            return self._with_all_parameters(first), *others
        # every n-th image, so that, where micro-batches are multiples of n, the same images go to the same sizes
        # whatever the number of workers
        indices, count = torch.arange(len(images), device=images.device), len(self.drawn)
        parts = [indices[first::count] for first in range(count)]
        logits = [self.forward_as(spec, images[part]) for spec, part in zip(self.drawn, parts, strict=True)]
        return self._with_all_parameters(torch.cat(logits)[torch.cat(parts).argsort()])

    def _with_all_parameters(self, logits: Tensor) -> Tensor:
        """The same logits, on which every parameter depends, so that those of no spec drawn have a gradient of 0.

        Without one, ZeRO-3 takes that of an earlier step, and optimizers in one process take no step at all.
        """
        return logits + 0 * torch.stack([parameter.sum() for parameter in self.parameters()]).sum()


class ElasticMethod(GeneratingMethod):
    """A method that trains its genes for many sizes at once."""

    # whether the sizes of a step share its images between them; else each sees them all
    split: ClassVar[bool] = False

    @abstractmethod
    def choose(self, source: Spec, generator: np.random.Generator, done: float) -> tuple[Spec, ...]:
        """The specs of one step, by how much of the training (0 to 1) is done; at 1 those that need the most memory."""

    def auxiliary(self, spec: Spec, *, drop_path: float = 0.0) -> nn.Module:
        self.choose(spec, np.random.default_rng(0), 0.0)  # refuses what does not fit the spec before anything starts
        return ElasticVisionTransformer(self, spec, drop_path=drop_path)


def nested_widths(method: str, source: Spec, widths: tuple[int, ...]) -> tuple[int, ...]:
    """The widths that a method trains, checked; the source's own is always among them.

    Raises:
        UserError: a width is larger than the source's or no multiple of its head size.
    """
    head_size = source.width // source.heads
    for width in widths:
        if width > source.width or width % head_size:
            raise UserError(
                f"{method}: widths are multiples of the head size {head_size} up to {source.width}, not {width}"
            )
    return tuple(sorted({*widths, source.width}))


def at_width(source: Spec, width: int, depth: int) -> Spec:
    """The source's spec at another width and depth, heads at the same size."""
    return source.replace(width=width, heads=width * source.heads // source.width, depth=depth)


def require_nested(method: str, source: Spec, spec: Spec) -> None:
    """Refuse what is not a slice: a larger width, or another head size.

    Raises:
        UserError: says what the learngene has and what was asked for.
    """
    if spec.width > source.width:
        raise UserError(
            f"{method} cannot grow the width: the learngene has width {source.width}, the spec asks for {spec.width}"
        )
    require_head_size(method, source, spec)


def nested(tensors: Mapping[str, Tensor], source: Spec, spec: Spec) -> dict[str, Tensor]:
    """The first channels, heads and hidden units of every parameter; views, by name.

    Query, key and value are sliced apart, so that the first heads stay whole.
    """
    return {name: _slice(name, tensor, source, spec) for name, tensor in tensors.items()}


def _slice(name: str, tensor: Tensor, source: Spec, spec: Spec) -> Tensor:
    if spec.width == source.width:
        return tensor
    width, hidden = spec.width, spec.hidden
    if name == "pos_embed":
        return tensor[..., :width]
    if name.startswith("head."):
        return tensor[:, :width] if name.endswith("weight") else tensor
    if "attn.qkv." in name:
        return torch.cat([part[:width, ...] if part.ndim == 1 else part[:width, :width] for part in tensor.chunk(3)])
    if "mlp.fc1." in name:
        return tensor[:hidden, :width] if tensor.ndim == 2 else tensor[:hidden]
    if "mlp.fc2.weight" in name:
        return tensor[:width, :hidden]
    if "attn.proj.weight" in name:
        return tensor[:width, :width]
    return tensor[:width]  # norms, biases and the patch embedding


def draw_step(module: nn.Module, seed: int, step: int, total_steps: int) -> None:
    """Let a module that is another model in every step draw which one it is in this; alike on all workers.

    The first step draws what needs the most memory: should it not suffice, that shows at once.
    """
    draw = getattr(module, "draw", None)
    if draw is not None:
        draw(np.random.default_rng([seed, step]), (step or total_steps) / total_steps)

"""Base classes of the methods that start from a trained model, which is their auxiliary model."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from ray_learngene.errors import UserError
from ray_learngene.methods.base import Learngene, Method
from ray_learngene.methods.generated import State, initialised
from ray_learngene.models.blocks import set_drop_path
from ray_learngene.models.build import build, spec_of
from ray_learngene.models.layout import block_lists
from ray_learngene.models.specs import Spec, size_of


class SourceMethod(Method):
    """A method that extracts its learngene from a trained timm model, the *source model*.

    `distill` trains the source model like any auxiliary model; `extract` takes an existing one.
    """

    source: ClassVar[Literal["auxiliary", "largest", "smallest", "each"]] = "largest"
    fixed: ClassVar[bool] = False  # it also takes a source that has its own size alone

    def auxiliary(self, spec: Spec, *, drop_path: float = 0.0) -> nn.Module:
        model: nn.Module = build(spec)
        model.spec = spec  # type: ignore[assignment]  # a module may hold any attribute
        set_drop_path(model, drop_path)
        return model

    def extract(self, auxiliary: nn.Module) -> Learngene:
        """Extract the learngene of any trained timm model, distilled here or not."""
        source = source_spec(self, auxiliary)
        tensors = {name: tensor.detach().cpu().clone() for name, tensor in auxiliary.state_dict().items()}
        return Learngene(self.name, self.options(), source, self.kept(tensors, source))

    def kept(self, tensors: State, source: Spec) -> State:
        """Select the parameters of a trained source model to store; by default all of them.

        Raises:
            UserError: the source lacks parameters that the options name.
        """
        return tensors


def source_spec(method: Method, model: nn.Module) -> Spec:
    """Return the spec of a source model.

    Raises:
        UserError: the model has its own size alone, and the method is not `fixed`.
    """
    fixed = isinstance(method, SourceMethod) and method.fixed
    source = spec_of(model, fixed=fixed)
    if not fixed and not block_lists(source):
        raise UserError(
            f"{method.name}: no list of blocks of {source.architecture} follows the depth; use method pretrained, "
            "which takes it at its own size"
        )
    return source


class InheritingMethod(SourceMethod):
    """A source method whose descendants inherit some of the source's parameters; timm initialises the others."""

    @abstractmethod
    def inherited(self, tensors: Mapping[str, Tensor], source: Spec, spec: Spec) -> State:
        """Return the inherited part of the state dict of the spec's timm model.

        Args:
            tensors: The learngene's tensors, extracted from a source model of spec `source`.

        Raises:
            UserError: the learngene cannot expand to that spec.
        """

    @torch.no_grad()
    def expand(self, learngene: Learngene | None, spec: Spec, *, seed: int = 0) -> nn.Module:
        made = self.as_made(learngene)
        assert learngene is not None
        state = made.inherited(learngene.tensors, learngene.spec, spec)
        return initialised(spec, seed, state, learngene.spec.image)


_ORDERED = (("depth", "depth"), ("width", "width"), ("hidden", "MLP width"))


def require_order(method: str, source: Spec, spec: Spec, *, grows: bool) -> None:
    """Check that a spec is not smaller (with `grows`) or not larger (without) than the source in depth and widths.

    Raises:
        UserError: a size is on the wrong side; the message gives both values.
    """
    sizes = [(words, getattr(source, field), getattr(spec, field)) for field, words in _ORDERED]
    if source.architecture is not None and spec.architecture == source.architecture:
        before, after = size_of(source), size_of(spec)
        sizes += [("depth of a stage", *each) for each in zip(before.depths, after.depths, strict=True)]
        sizes += [("width of a stage", *each) for each in zip(before.widths, after.widths, strict=True)]
    for words, have, want in sizes:
        if (want < have) if grows else (want > have):
            does = "grows" if grows else "shrinks"
            raise UserError(f"{method} only {does} a model: the learngene has {words} {have}, the spec asks for {want}")

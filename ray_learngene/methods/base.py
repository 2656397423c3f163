"""The interface of a method, and the learngene it produces."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Protocol, Self

import safetensors.torch
import torch
from pydantic import BeforeValidator, Field
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from ray_learngene.config import Config
from ray_learngene.errors import UserError
from ray_learngene.models.specs import Spec

WEIGHTS_FILE = "learngene.safetensors"
DESCRIPTION_FILE = "learngene.json"


@dataclass(frozen=True)
class Learngene:
    """What is kept of a distilled auxiliary model.

    Attributes:
        method: Name of the method that made it and that expands it.
        options: That method's options, as JSON values.
        spec: Spec of the auxiliary model.
        tensors: Parameters by name, on the CPU.
        labels: Class names in the order of the head, so that the head is only inherited for the same label set.
        preprocessing: Image size, mean and deviation and evaluation crop it was distilled with, for its descendants.
    """

    method: str
    options: dict[str, Any]
    spec: Spec
    tensors: Mapping[str, torch.Tensor] = field(repr=False)
    labels: tuple[str, ...] = field(default=(), repr=False)
    preprocessing: dict[str, Any] = field(default_factory=dict)

    def parameters(self, *, head: bool = True) -> int:
        """Number of stored parameters, with or without the classification head."""
        return sum(tensor.numel() for name, tensor in self.tensors.items() if head or not name.startswith("head."))

    def without_head(self) -> Learngene:
        """The same learngene for another label set: an expansion draws a head of its own."""
        return replace(self, tensors={name: x for name, x in self.tensors.items() if not name.startswith("head.")})

    def describe(self, *, labels: tuple[str, ...], preprocessing: dict[str, Any]) -> Learngene:
        """The same learngene with the label set and the preprocessing it was distilled with."""
        return replace(self, labels=labels, preprocessing=preprocessing)

    def description(self) -> dict[str, Any]:
        """Everything but the tensors, as JSON values."""
        return {
            "method": self.method,
            "options": self.options,
            "spec": self.spec.model_dump(),
            "labels": list(self.labels),
            "preprocessing": self.preprocessing,
            "parameters": self.parameters(),
        }

    def save(self, folder: Path) -> None:
        """Write `learngene.safetensors` and `learngene.json` into `folder`."""
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.tensors.items()}
        safetensors.torch.save_file(tensors, folder / WEIGHTS_FILE)
        (folder / DESCRIPTION_FILE).write_text(json.dumps(self.description(), indent=2) + "\n")

    @classmethod
    def from_bytes(cls, weights: bytes, description: bytes) -> Learngene:
        """The learngene of the two files' contents."""
        facts = json.loads(description)
        return cls(
            method=facts["method"],
            options=facts["options"],
            spec=Spec(**facts["spec"]),
            tensors=safetensors.torch.load(weights),
            labels=tuple(facts["labels"]),
            preprocessing=facts["preprocessing"],
        )

    @classmethod
    def load(cls, folder: Path) -> Learngene:
        """Read what `save` wrote."""
        return cls.from_bytes((folder / WEIGHTS_FILE).read_bytes(), (folder / DESCRIPTION_FILE).read_bytes())


class Adapter(Protocol):
    """A model of the target spec that is fitted on a little data before it becomes a plain one: `Method.adapter`."""

    fit_steps: int
    fit_lr: float

    def __call__(self, images: torch.Tensor) -> torch.Tensor: ...
    def materialise(self) -> VisionTransformer: ...


class Method(Config, ABC):
    """How an auxiliary model is built, what is kept of it, and how that expands.

    The fields of a method are its options. A method that leaves a question unanswered (scratch has no learngene) raises
    `UserError` saying so.
    """

    name: ClassVar[str]
    needs_learngene: ClassVar[bool] = True
    # what a learngene is taken from: an auxiliary model of the method's own, or a plain model trained at the largest
    # size wanted, the smallest, or at each
    source: ClassVar[Literal["auxiliary", "largest", "smallest", "each"]] = "auxiliary"
    # options that say how a learngene expands; the others say how it was made, and are kept with it
    expansion_options: ClassVar[frozenset[str]] = frozenset()

    def as_made(self, learngene: Learngene | None) -> Self:
        """This method with the options that the learngene was made with.

        Raises:
            UserError: there is no learngene, or an option given here is another one there.
        """
        if learngene is None:
            raise UserError(f"method {self.name!r} expands a learngene: give --learngene NAME")
        if learngene.method != self.name:
            raise UserError(f"method {self.name!r} cannot expand a learngene of method {learngene.method!r}")
        for option in self.model_fields_set - self.expansion_options:
            here, there = self.model_dump(mode="json")[option], learngene.options.get(option)
            if here != there:
                raise UserError(
                    f"the learngene was made with {self.name}:{option}={there}, not {here}: leave the option out"
                )
        given = self.model_dump(mode="json", include=set(self.expansion_options))
        return type(self)(**{**learngene.options, **given})

    def auxiliary(self, spec: Spec, *, drop_path: float = 0.0) -> nn.Module:
        """The module that distillation trains: images `[B, 3, image, image]` to logits `[B, classes]`.

        It has an attribute `spec`, which may refine the spec asked for (its depth, where the options set that). One
        that is another model in every step has `draw(generator)`, called once a step with the same generator on all
        workers, and may return several logits in training, whose losses are averaged. The methods that start from a
        trained model have that model as their auxiliary: a plain one of the spec.

        Raises:
            UserError: the method has no auxiliary model, or its options do not fit the spec.
        """
        raise UserError(f"method {self.name!r} has no auxiliary model to distil: it cannot be used with `distill`")

    def extract(self, auxiliary: nn.Module) -> Learngene:
        """What is kept of a trained auxiliary model, copied to the CPU.

        Raises:
            UserError: the model is none that this method can take a learngene from.
        """
        raise UserError(f"method {self.name!r} has no auxiliary model to extract a learngene from")

    @abstractmethod
    def expand(self, learngene: Learngene | None, spec: Spec, *, seed: int = 0) -> VisionTransformer:
        """A plain timm model of `spec`, initialised from the learngene.

        Args:
            seed: Seed of whatever the learngene does not determine (a head for another number of classes).

        Raises:
            UserError: the learngene cannot become a model of that spec.
        """

    def adapter(self, learngene: Learngene | None, spec: Spec, *, seed: int = 0) -> Adapter | None:
        """A module whose parameters are fitted to the target spec for `fit_steps` steps, then made a plain model.

        None where the expansion alone initialises a descendant.
        """
        return None


def _parse(value: Any) -> Any:
    if isinstance(value, int):
        return (value,)
    if isinstance(value, str):
        parts = value.split("-")
        if not all(part.strip().isdigit() for part in parts):
            raise ValueError(f"expected numbers such as 3-3-4-3-3, got {value!r}")
        return tuple(int(part) for part in parts)
    return value


Numbers = Annotated[tuple[Annotated[int, Field(ge=1)], ...], BeforeValidator(_parse)]

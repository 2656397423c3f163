"""The method interface, and the learngene that a method produces."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Protocol, Self

import safetensors.torch
import torch
from pydantic import BaseModel, BeforeValidator, Field, field_validator
from torch import nn

from ray_learngene.config.base import Config
from ray_learngene.config.decides import DESCENDANT, decisive
from ray_learngene.config.documents import parse_object
from ray_learngene.errors import UserError
from ray_learngene.models.build import head_names
from ray_learngene.models.preprocessing import Preprocessing
from ray_learngene.models.specs import Spec

WEIGHTS_FILE = "learngene.safetensors"
DESCRIPTION_FILE = "learngene.json"


@dataclass(frozen=True)
class Learngene:
    """The parameters extracted from a distilled auxiliary model, with what is needed to expand them.

    Attributes:
        method: Name of the method that extracted it and expands it.
        options: Options of the method, as JSON values.
        spec: Spec of the auxiliary model.
        tensors: Parameters by name, on the CPU.
        labels: Class names in the order of the head. Descendants inherit the head only for the same names.
        preprocessing: Image size, mean, standard deviation and evaluation crop of the distillation, for descendants.
    """

    method: str
    options: dict[str, Any]
    spec: Spec
    tensors: Mapping[str, torch.Tensor] = field(repr=False)
    labels: tuple[str, ...] = field(default=(), repr=False)
    preprocessing: dict[str, Any] = field(default_factory=dict)

    def parameters(self, *, head: bool = True) -> int:
        """Count the stored parameters, with or without the classification head."""
        return sum(tensor.numel() for name, tensor in self.tensors.items() if head or not self.is_head(name))

    def is_head(self, name: str) -> bool:
        """Tell whether a tensor belongs to the classification head."""
        return name.startswith(head_names(self.spec))

    def without_head(self) -> Learngene:
        """Drop the head, for another label set: an expansion then initialises a new one."""
        return replace(self, tensors={name: x for name, x in self.tensors.items() if not self.is_head(name)})

    def reordered(self, order: Sequence[int], labels: tuple[str, ...]) -> Learngene:
        """Bring the classes of the head into another order.

        Args:
            order: Index in the present order of each class of the new one.
            labels: Their names, in the new order.
        """
        index = torch.tensor(order)
        tensors = {name: x[index] if self.is_head(name) else x for name, x in self.tensors.items()}
        return replace(self, tensors=tensors, labels=labels)

    def describe(self, *, labels: tuple[str, ...], preprocessing: dict[str, Any]) -> Learngene:
        """Return a copy with the label set and the preprocessing of its distillation."""
        return replace(self, labels=labels, preprocessing=preprocessing)

    def description(self) -> dict[str, Any]:
        """Return everything but the tensors, as JSON values."""
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
        """Parse the contents of the two files that `save` writes.

        Raises:
            ValueError: the description is not one.
            SafetensorError: the weights are none.
        """
        fields = _Description.model_validate(parse_object(description))
        return cls(
            method=fields.method,
            options=fields.options,
            spec=fields.spec,
            tensors=safetensors.torch.load(weights),
            labels=fields.labels,
            preprocessing=fields.preprocessing,
        )

    @classmethod
    def load(cls, folder: Path) -> Learngene:
        """Read the folder that `save` wrote."""
        return cls.from_bytes((folder / WEIGHTS_FILE).read_bytes(), (folder / DESCRIPTION_FILE).read_bytes())


class _Description(BaseModel):
    """The contents of `learngene.json` that are read."""

    method: str
    options: dict[str, Any]
    spec: Spec
    labels: tuple[str, ...]
    preprocessing: dict[str, Any]

    @field_validator("preprocessing")
    @classmethod
    def _complete(cls, preprocessing: dict[str, Any]) -> dict[str, Any]:
        if preprocessing:  # methods that are tried out without images have none
            Preprocessing.model_validate(preprocessing)
        return preprocessing


class Adapter(Protocol):
    """A model of the target spec, fitted for a few steps before it becomes a plain model; see `Method.adapter`."""

    fit_steps: int
    fit_lr: float

    def __call__(self, images: torch.Tensor) -> torch.Tensor: ...
    def materialise(self) -> nn.Module: ...


class Method(Config, ABC):
    """How to build an auxiliary model, extract a learngene from it and expand that learngene.

    The fields of a method are its options. A method without one of these steps (scratch has no learngene) raises
    `UserError` there.
    """

    name: ClassVar[str]
    needs_learngene: ClassVar[bool] = True
    # the model a learngene is extracted from: the method's own auxiliary model, or a plain model trained at the
    # largest size wanted, at the smallest, or at each
    source: ClassVar[Literal["auxiliary", "largest", "smallest", "each"]] = "auxiliary"
    # options of the expansion; all other options belong to the distillation and are stored in the learngene
    expansion_options: ClassVar[frozenset[str]] = frozenset()

    def options(self) -> dict[str, Any]:
        """Return the options as JSON values, as artefacts keep them and as names of descendants hash them.

        An option that came later is left out while it has its default, so that names and versions stay.
        """
        return decisive(self, DESCENDANT)

    def as_made(self, learngene: Learngene | None) -> Self:
        """Return this method with the options that the learngene was made with.

        Raises:
            UserError: there is no learngene, another method made it, or it was made with another value of an option.
        """
        if learngene is None:
            raise UserError(f"method {self.name!r} expands a learngene: give --learngene NAME")
        if learngene.method != self.name:
            raise UserError(f"method {self.name!r} cannot expand a learngene of method {learngene.method!r}")
        for option in self.model_fields_set - self.expansion_options:
            here = self.model_dump(mode="json")[option]
            there = learngene.options.get(option, type(self).model_fields[option].default)
            if here != there:
                raise UserError(
                    f"the learngene was made with {self.name}:{option}={there}, not {here}: leave the option out"
                )
        given = self.model_dump(mode="json", include=set(self.expansion_options))
        return type(self)(**{**learngene.options, **given})

    def auxiliary(self, spec: Spec, *, drop_path: float = 0.0) -> nn.Module:
        """Build the module that distillation trains: images `[B, *spec.image]` to logits `[B, classes]`.

        The module has an attribute `spec`. It may differ from the argument in depth, if the options set the depth. An
        elastic module also has `draw(generator, done)`, which samples the sub-models of a step. It is called once a
        step, with the same generator on every rank. In training an elastic module may return several logits, whose
        losses are averaged. If a method starts from a trained model, its auxiliary is that model: one of the spec's
        own.

        To learn features, the `forward` of a module that is no timm model takes a second argument `read`, and returns
        `read(model, images)` of the timm model that it makes. The dictionary of tensors stands for the logits.

        `distill` also calls it on torch's meta device, so that what it refuses is refused before anything is read.

        Raises:
            UserError: the method has no auxiliary model, or its options do not fit the spec.
        """
        raise UserError(f"method {self.name!r} has no auxiliary model to distil: it cannot be used with `distill`")

    def extract(self, auxiliary: nn.Module) -> Learngene:
        """Extract the learngene of a trained auxiliary model, copied to the CPU.

        Raises:
            UserError: the method cannot extract a learngene from this model.
        """
        raise UserError(f"method {self.name!r} has no auxiliary model to extract a learngene from")

    @abstractmethod
    def expand(self, learngene: Learngene | None, spec: Spec, *, seed: int = 0) -> nn.Module:
        """Build a plain timm model of `spec`, initialised from the learngene.

        Args:
            seed: Seed of the parameters that the learngene does not determine (a head for another number of classes).

        Raises:
            UserError: the learngene cannot expand to that spec.
        """

    def outside(self, learngene: Learngene | None, spec: Spec) -> str | None:
        """Say why a spec lies outside what the learngene was trained for, such as a depth; None if it does not."""
        return None

    def trained_widths(self, learngene: Learngene) -> tuple[int, ...]:
        """Return the widths that a learngene was trained at: its own, and those of the method's option `widths`."""
        return tuple(sorted({learngene.spec.width, *learngene.options.get("widths", ())}))

    @property
    def fitting_steps(self) -> int:
        """Steps for which `adapter` is fitted; 0 if `expand` alone initialises a descendant."""
        return 0

    def adapter(self, learngene: Learngene | None, spec: Spec, *, seed: int = 0) -> Adapter | None:
        """Build the module to fit to the target spec for `fit_steps` steps before it becomes a plain model.

        Returns None if `expand` alone initialises a descendant.
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

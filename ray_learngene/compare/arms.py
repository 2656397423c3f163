"""What a benchmark plans for an arm: its distillations, and the sizes that it can make."""

from __future__ import annotations

from dataclasses import dataclass

from ray_learngene.config import BenchArm
from ray_learngene.methods.base import Method
from ray_learngene.models.specs import Spec


@dataclass(frozen=True)
class Distillation:
    """A distillation without its seed and learning rate; arms that start from the same model share it.

    Attributes:
        family: Distillations of one family share a learning rate search: an arm, or the plain models of one source.
        settings: Settings that differ from the recipe's, as JSON.
    """

    label: str
    method: str
    spec: Spec
    family: str
    epochs: int
    settings: str = "{}"


@dataclass(frozen=True)
class ArmPlan:
    """One arm with everything derived from its configuration.

    Attributes:
        distillations: By the descendant's size; None if the method needs no learngene.
        extracted: Whether another method extracts the learngene from the distilled model.
        refused: By size, why the arm cannot make it.
    """

    name: str
    arm: BenchArm
    method: Method
    distillations: dict[Spec, Distillation | None]
    extracted: bool
    refused: dict[Spec, str]

    @property
    def specs(self) -> list[Spec]:
        """The sizes that the arm can make."""
        return [spec for spec in self.distillations if spec not in self.refused]

    @property
    def per_size(self) -> bool:
        """Whether every size has its own learngene, which then counts as part of that size's cost."""
        return (self.arm.source or self.method.source) == "each" and self.method.needs_learngene

    @property
    def middle(self) -> Spec:
        """The size of the learning rate search."""
        return self.specs[len(self.specs) // 2]

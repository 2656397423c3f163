"""One trial of a sweep, and what trials of a learning-rate search have in common."""

from __future__ import annotations

from dataclasses import dataclass

from ray_learngene.models.specs import Spec
from ray_learngene.sweeps.arms import Arm


@dataclass(frozen=True)
class Trial:
    """What is trained: one descendant.

    Attributes:
        lr: The sweep's; where learning rates are searched, until the search has chosen one.
        epochs: None for those of the sweep.
    """

    arm: Arm
    spec: Spec
    seed: int
    lr: float
    epochs: int | None = None

    @property
    def group(self) -> Group:
        """What the trials of a learning-rate search have in common."""
        return self.arm, self.spec, self.seed


Group = tuple[Arm, Spec, int]
Known = dict[Group, list[tuple[float, float]]]  # learning rates tried and their scores, by group

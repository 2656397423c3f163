"""Scratch: no learngene; timm's random initialisation (truncated normal 0.02, norms 1/0, biases 0)."""

from __future__ import annotations

from typing import ClassVar

from torch import nn

from ray_learngene.methods.base import Learngene, Method
from ray_learngene.models.build import build
from ray_learngene.models.specs import Spec


class Scratch(Method):
    """The baseline for every other initialisation."""

    name: ClassVar[str] = "scratch"
    needs_learngene: ClassVar[bool] = False

    def expand(self, learngene: Learngene | None, spec: Spec, *, seed: int = 0) -> nn.Module:
        model: nn.Module = build(spec, seed=seed)
        return model

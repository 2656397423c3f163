"""Families that keep query, key and value of one head together: LeViT, TinyViT, EfficientViT."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from ray_learngene.models.families.base import Family


class HeadsOutermost(Family):
    """Rows of `qkv` are ordered by head first, so they are one group."""

    classes = ("Levit", "LevitDistilled", "TinyVit", "EfficientVit", "EfficientVitLarge", "EfficientVitMsra")

    def groups(self, name: str, dim: int, shapes: Mapping[str, torch.Size]) -> int:
        return 1

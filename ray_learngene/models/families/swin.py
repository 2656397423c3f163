"""timm's Swin transformers: windows, and stages whose width doubles."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch

from ray_learngene.models.families.base import Family


class Swin(Family):
    """Stages of blocks with and without shifted windows; their parameters are alike."""

    classes: ClassVar[tuple[str, ...]] = ("SwinTransformer",)
    doubles = True

    def groups(self, name: str, dim: int, shapes: Mapping[str, torch.Size]) -> int:
        """Merging concatenates four patches; V1 and CR norm all four, V2 norms the two widths that they become."""
        merged = ".downsample.reduction.weight"
        before, found, rest = name.partition(".downsample.")
        if found:
            parts = shapes[before + merged][1]
            if rest == "reduction.weight":
                return 4 if dim == 1 else 1
            return 4 if shapes[name][0] == parts else 1
        return super().groups(name, dim, shapes)


class SwinV2(Swin):
    """Norms at the end of every residual branch."""

    classes = ("SwinTransformerV2", "SwinTransformerV2Cr")
    branch_ends = ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias")

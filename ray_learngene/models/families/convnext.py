"""timm's ConvNeXt, ConvNeXt V2 and DINOv3's ConvNeXt."""

from __future__ import annotations

from ray_learngene.models.families.base import Family


class ConvNeXt(Family):
    """Stages of blocks without heads."""

    classes = ("ConvNeXt",)

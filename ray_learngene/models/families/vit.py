"""timm's vision transformer of SAM. All others (DeiT, AugReg, DINOv2, SigLIP, CLIP, BEiT) need no family."""

from __future__ import annotations

from ray_learngene.models.families.base import Family


class DecomposedPositionViT(Family):
    """Vision transformers whose relative positions act on the channels of a head."""

    classes = ("VisionTransformerSAM",)
    whole_heads = True

"""timm's VisionTransformer: DeiT, DeiT-III, AugReg, DINOv2, SigLIP, CLIP and others."""

from __future__ import annotations

from ray_learngene.models.families.base import Family


class ViT(Family):
    """Vision transformers with learned positions; channels within a head may be chosen freely."""

    classes = ("VisionTransformer", "VisionTransformerDistilled")


class DecomposedPositionViT(Family):
    """Vision transformers whose relative positions act on the channels of a head."""

    classes = ("VisionTransformerSAM",)
    whole_heads = True

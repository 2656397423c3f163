"""Small models of every family, as specs."""

from __future__ import annotations

from typing import Any

from ray_learngene.models.specs import Spec, spec_for

_ViT: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}
_GATED = {**_ViT, "embed_dim": 48}
_SWIN = {"img_size": 32, "patch_size": 4, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4}
_CONV = {"depths": [1, 2, 2, 1], "dims": [8, 16, 24, 32]}
_XCIT = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}

SMALL: dict[str, dict[str, Any]] = {
    "deit_tiny_patch16_224": _ViT,
    "deit_tiny_distilled_patch16_224": _ViT,
    "deit3_small_patch16_224": _ViT,
    "vit_small_patch14_dinov2": _ViT,
    "vit_small_patch14_reg4_dinov2": _ViT,
    "vit_giant_patch14_reg4_dinov2": _GATED,
    "vit_base_patch16_siglip_224": _ViT,
    "vit_base_patch16_siglip_gap_224": _ViT,
    "vit_base_patch16_clip_quickgelu_224": _ViT,
    "vit_small_patch16_dinov3": _ViT,
    "vit_small_plus_patch16_dinov3": _GATED,
    "eva02_tiny_patch14_224": _GATED,
    "eva02_base_patch14_224": _GATED,
    "vit_small_patch16_rope_mixed_224": _ViT,
    "vit_base_patch16_sapiens2": {**_GATED, "depth": 4, "num_heads": 6, "num_kv_heads": [6, 2, 2, 6]},
    "beit_base_patch16_224": _ViT,
    "beitv2_base_patch16_224": _ViT,
    "swin_tiny_patch4_window7_224": _SWIN,
    "swinv2_tiny_window8_256": _SWIN,
    "swinv2_cr_tiny_224": _SWIN,
    "convnext_atto": _CONV,
    "convnextv2_atto": _CONV,
    "pvt_v2_b0": {"depths": [1, 2, 1, 1], "embed_dims": [8, 16, 24, 32], "num_heads": [1, 2, 3, 4]},
    "xcit_nano_12_p16_224": _XCIT,
    "cait_xxs24_224": _XCIT,
}


def small(architecture: str, classes: int = 5) -> Spec:
    """Return the small spec of an architecture."""
    spec = spec_for(architecture, classes=classes, **SMALL[architecture])
    return spec.replace(image=32) if spec.image != 32 else spec

"""timm's Eva: DINOv3, EVA, EVA-02, perception encoders and other transformers with rotary positions."""

from __future__ import annotations

from ray_learngene.models.families.base import Family


class Eva(Family):
    """Rotary positions act on pairs of channels of a head."""

    classes = ("Eva",)
    whole_heads = True
    per_block = ("num_kv_heads",)

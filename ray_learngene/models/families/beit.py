"""timm's BEiT and BEiT v2."""

from __future__ import annotations

from ray_learngene.models.families.base import Family


class Beit(Family):
    """Relative positions are a table per head, which is resampled for another image size."""

    classes = ("Beit",)

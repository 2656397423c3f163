"""The digits as a recipe, and a learngene of them, for benchmarks of what surrounds training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ray_learngene.config import AncestryConfig, DistillConfig
from ray_learngene.distillation.distill import distill
from ray_learngene.distillation.train_ancestry import train_ancestry

DIGITS: dict[str, Any] = {
    "data": "digits", "batch_size": 64, "scale": (0.8, 1.0), "hflip": 0.0, "crop_pct": 1.0, "drop_path": 0.0,
    "warmup_epochs": 0,
}  # fmt: skip
ANCESTRY_SIZE = {
    "img_size": 8, "patch_size": 2, "embed_dim": 64, "depth": 4, "num_heads": 4, "class_token": False,
    "global_pool": "avg",
}  # fmt: skip


def write_recipe(path: Path, **settings: Any) -> Path:
    """The recipe as a file for `--config`: YAML, which JSON is."""
    path.write_text(json.dumps({**DIGITS, **settings}))
    return path


def make_learngene(store: str) -> None:
    """Put an ancestry model and a learngene of the digits, both barely trained, into a store."""
    train_ancestry(
        AncestryConfig(
            store=store, name="digits", model="deit_tiny_patch16_224", model_args=ANCESTRY_SIZE, epochs=1, workers=0,
            **DIGITS,
        )
    )  # fmt: skip
    distill(
        DistillConfig(
            store=store, name="digits", ancestry="store:ancestries/digits", preset="nano", epochs=1, workers=0, **DIGITS
        )
    )

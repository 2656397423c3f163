"""A recipe on the digits and a learngene of them, for benchmarks of everything except training speed."""

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
    """Write the recipe as a file for `--config`, in JSON, which is valid YAML."""
    path.write_text(json.dumps({**DIGITS, **settings}))
    return path


def make_learngene(store: str) -> None:
    """Train an ancestry model and a learngene of the digits for one epoch each, into a store."""
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

"""Small timm model folders of unusual kinds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import save_for_hf

DATA = {"input_size": (3, 8, 8), "mean": (0.5,) * 3, "std": (0.5,) * 3, "crop_pct": 1.0, "interpolation": "bicubic"}
KINDS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {  # arguments of the model, data configuration
    "one-channel": ({"in_chans": 1}, {"input_size": (1, 8, 8), "mean": (0.4,), "std": (0.3,)}),
    "non-square": ({"img_size": (8, 12)}, {"input_size": (3, 8, 12)}),
    "bilinear": ({}, {"interpolation": "bilinear"}),
    "box": ({}, {"interpolation": "box"}),
    "lanczos": ({}, {"interpolation": "lanczos"}),
    "four-channels": ({"in_chans": 4}, {"input_size": (4, 8, 8), "mean": (0.5,) * 4, "std": (0.5,) * 4}),
    "random": ({}, {"interpolation": "random"}),
}


def save_teacher(
    folder: Path, kind: str = "", *, classes: int = 10, model_config: dict[str, Any] | None = None
) -> torch.nn.Module:
    """Write a timm folder of an untrained model and return the model."""
    arguments, data = KINDS.get(kind, ({}, {}))
    size = {"img_size": 8, "patch_size": 2, "embed_dim": 48, "depth": 1, "num_heads": 3}
    arguments = {**size, "class_token": False, "global_pool": "avg", **arguments}
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", num_classes=classes, **arguments)
    save_for_hf(
        model,
        str(folder),
        model_config=model_config or {},
        model_args=arguments,
        safe_serialization=True,
        data_config={**DATA, **data},
    )
    return model.eval()

"""Import timm next to a CPU-only torch, and without Weights & Biases.

Where wandb is installed, timm imports it for `update_summary`. That makes two folders in TMPDIR, which a killed process
leaves behind. Here timm imports wandb when it first uses it.
"""

import importlib
import sys
from typing import Any

import ray_learngene.torchvision_cpu  # noqa: F401  (before the first import of torchvision)


class _Wandb:
    """Stands for wandb in timm."""

    def __getattr__(self, name: str) -> Any:
        return getattr(importlib.import_module("wandb"), name)


def import_timm() -> None:
    """Import timm; leave alone what the caller has imported before."""
    if "timm.utils" in sys.modules or "wandb" in sys.modules:
        return
    sys.modules["wandb"] = None  # type: ignore[assignment]  # an import of it fails, as where it is not installed
    try:
        summary: Any = importlib.import_module("timm.utils.summary")
    finally:
        del sys.modules["wandb"]
    summary.wandb = _Wandb()


import_timm()

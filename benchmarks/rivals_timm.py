"""Runs timm's train.py (a path and its arguments) without torchvision's compiled operators; see `rivals`."""

import runpy
import sys

import ray_learngene.torchvision_cpu  # noqa: F401  isort:skip  (before the first timm import)

if __name__ == "__main__":
    sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")

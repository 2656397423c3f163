"""The frozen teacher and its cached logits."""

import ray_learngene.torchvision_cpu  # noqa: F401  (before the first import of timm)

"""One optimizer step, one training loop, its engines, checkpoints and evaluation."""

import ray_learngene.torchvision_cpu  # noqa: F401  (before the first import of timm)

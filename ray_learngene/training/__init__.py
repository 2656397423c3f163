"""The optimizer step and the training loop, with engines, checkpoints and evaluation."""

import ray_learngene.torchvision_cpu  # before the first import of timm

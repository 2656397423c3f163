"""The frozen teacher and its cached logits."""

import ray_learngene.torchvision_cpu  # before the first import of timm

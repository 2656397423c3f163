"""From a learngene or a descendant to what runs on a device: expansion, export, timing."""

import ray_learngene.torchvision_cpu  # before the first timm import

"""Image sets, the order in which their images are seen, and the loaders that turn them into tensors."""

import ray_learngene.torchvision_cpu  # before the first import of timm

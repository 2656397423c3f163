"""Image sets, the order in which their images are seen, and the loaders that turn them into tensors."""

import ray_learngene.models.timm_import  # before the first import of timm

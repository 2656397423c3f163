"""Methods: how an auxiliary model is built, what is kept of it, and how that expands into descendants."""

import ray_learngene.torchvision_cpu  # noqa: F401  (before the first import of timm)

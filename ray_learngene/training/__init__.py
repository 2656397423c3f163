"""The optimizer step and the training loop, with engines, checkpoints and evaluation."""

import ray_learngene.models.timm_import  # before the first import of timm

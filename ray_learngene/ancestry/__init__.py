"""The frozen teacher and its cached logits."""

import ray_learngene.models.timm_import  # before the first import of timm

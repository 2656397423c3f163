"""From a learngene or a descendant to what runs on a device: expansion, export, timing."""

import ray_learngene.models.timm_import  # before the first timm import

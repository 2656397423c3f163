"""Families: what differs between timm's architectures. One file a family, each a subclass of `Family`."""

import ray_learngene.models.timm_import  # before the first import of timm

"""Methods: how to build an auxiliary model, extract a learngene from it and expand that into descendants."""

import ray_learngene.models.timm_import  # before the first import of timm

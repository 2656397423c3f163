"""Images: the sets a model is trained on, their order, and the loaders that turn them into tensors.

`open_image_sets` knows every kind of image set; `convert` writes any of them as Parquet shards. The order of the images
and what augmentation does to each are functions of (seed, epoch, index) alone.
"""

from ray_learngene.data.check import check_images
from ray_learngene.data.convert import convert
from ray_learngene.data.image_set import ImageSet, ImageSets
from ray_learngene.data.loader import eval_loader, train_loader
from ray_learngene.data.open import open_image_sets
from ray_learngene.data.order import Sample, WorkerBatches, global_batches

__all__ = [
    "ImageSet",
    "ImageSets",
    "Sample",
    "WorkerBatches",
    "check_images",
    "convert",
    "eval_loader",
    "global_batches",
    "open_image_sets",
    "train_loader",
]

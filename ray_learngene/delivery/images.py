"""An image set as a model folder sees it."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import ray_learngene.models.timm_import  # noqa: F401  isort:skip  (before the first timm import)
import numpy as np
from timm.data import resolve_model_data_config
from torch import nn

from ray_learngene.config import DataConfig
from ray_learngene.data.class_names import order_of, timms_order
from ray_learngene.data.image_set import ImageSet, relabelled
from ray_learngene.data.loader import Batch, eval_loader
from ray_learngene.data.open import open_image_sets
from ray_learngene.data.reader import Reader, none_readable
from ray_learngene.errors import UserError
from ray_learngene.models.preprocessing import Preprocessing
from ray_learngene.models.timm_folder import labels_of
from ray_learngene.progress import counted

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ModelImages:
    """An image set as a model sees it: its preprocessing, and labels in the order of its head."""

    train: ImageSet
    val: ImageSet
    preprocessing: Preprocessing
    crop_mode: str
    config: DataConfig

    @classmethod
    def open(cls, model: nn.Module, where: str, config: DataConfig) -> ModelImages:
        """Open the image set of a configuration for a timm model.

        Args:
            where: What the model is called in a message.

        Raises:
            UserError: its classes are not those of the images, or its images are neither grey nor RGB.
        """
        sets = open_image_sets(config)
        labels = labels_of(model)
        given = labels and model.num_classes  # a model of features has no order of classes
        order = head_order(sets.val.classes, labels, int(getattr(model, "num_classes", 0)), where, config.data)
        data = resolve_model_data_config(model)
        preprocessing = Preprocessing.of(model, where, input_size=data["input_size"])
        _ = preprocessing.mode
        if model.num_classes and not labels:
            log.warning(_unnamed(where, config.data, sets.val.classes))
        train, val = (
            relabelled(part, np.argsort(order), labels if given else part.classes) for part in (sets.train, sets.val)
        )
        return cls(train, val, preprocessing, data["crop_mode"], config)

    def batches(self, images: ImageSet, batch_size: int, reader: Reader | None = None) -> Iterator[Batch]:
        """Yield the batches of one of the two splits in order, resized and cropped as in evaluation.

        Raises:
            UserError: no image can be read.
        """
        batch = None
        for batch in eval_loader(
            images,
            self.preprocessing,
            batch_size,
            workers=self.config.loader_workers,
            reader=reader or Reader(images, self.config.unreadable),
            crop_mode=self.crop_mode,
        ):
            yield batch
        if batch is None:
            raise UserError(none_readable(len(images)))


def head_order(images: Sequence[str], labels: Sequence[str], classes: int, where: str, data: str) -> list[int]:
    """Return the order of an image set's classes in a head; a model of features, or without names, keeps the set's.

    Args:
        classes: Of the head; 0 for a model of features.
        where: What the model is called in a message.

    Raises:
        UserError: the classes are not those of the images.
    """
    order = order_of(images, labels) if labels and classes else list(range(len(images)))
    if (classes and classes != len(images)) or order is None:
        raise UserError(
            f"{where} has {counted(classes, 'class')} ({_first(labels)}), --data {data} has "
            f"{len(images)} ({_first(images)}): they are not the same label set"
        )
    return order


def _unnamed(where: str, data: str, classes: Sequence[str]) -> str:
    """Say in which order the classes of a model are counted that does not name them."""
    timms = timms_order(classes)
    other = "" if timms is None else f"; timm counts {_first([classes[index] for index in timms])}"
    order = f"in the order of --data {data} ({_first(classes)})"
    return f"{where} names no classes: they are taken {order}{other}; label_names of config.json says another order"


def _first(classes: Sequence[str]) -> str:
    """Return the first names of a set of classes."""
    return ", ".join(classes[:3]) + (", ..." if len(classes) > 3 else "")

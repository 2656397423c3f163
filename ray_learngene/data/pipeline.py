"""Both splits of an image set with what turns them into tensors: all that training needs to know of images."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from torch.utils.data import DataLoader

from ray_learngene.config import (
    AncestryConfig,
    AugmentationConfig,
    DataConfig,
    DistillConfig,
    OptimizationConfig,
    SweepConfig,
)
from ray_learngene.data.check import UnreadableImages, check_images
from ray_learngene.data.image_set import ImageSet, ImageSets, hold_out
from ray_learngene.data.loader import Batch, eval_loader, train_loader
from ray_learngene.data.open import open_image_sets
from ray_learngene.data.reader import Policy, Reader
from ray_learngene.errors import UserError
from ray_learngene.models.origin import restricts
from ray_learngene.models.preprocessing import Preprocessing
from ray_learngene.progress import counted

log = logging.getLogger(__name__)

Trains = AncestryConfig | DistillConfig | SweepConfig


@dataclass(frozen=True)
class ImagePipeline:
    """What to train and to validate on, and how. It is sent to workers, which open mapped files again.

    Attributes:
        choice: Images held out of training to choose the epoch whose weights are published; None for the last epoch.
        license: What the card of the image set states.
    """

    train: ImageSet
    val: ImageSet
    preprocessing: Preprocessing
    augmentation: AugmentationConfig
    loader_workers: int = 0
    unreadable: Policy = "fail"
    finish_batches: Literal["device", "loader"] = "device"
    choice: ImageSet | None = None
    license: str | None = None

    @classmethod
    def of(cls, sets: ImageSets, preprocessing: Preprocessing, config: Trains) -> ImagePipeline:
        """Return the pipeline of a command's image sets, with its augmentation and the way it reads images.

        Raises:
            UserError: `publish` is "best", and no image can be held out of training; or image files are not read with
                so many channels.
        """
        _ = preprocessing.mode
        train, choice = sets.train, None
        if config.publish == "best":
            parts = hold_out(train, config.holdout)
            train, choice = parts.train, parts.val
            if not len(choice):
                raise UserError(
                    "--publish best needs a class of two training images or more: add images, or leave it out"
                )
            log.info(f"choosing the epoch to publish on {counted(len(choice), 'image')} held out of the training split")
        return cls(
            train,
            sets.val,
            preprocessing,
            config,
            config.loader_workers,
            config.unreadable,
            config.finish_batches,
            choice,
            sets.license,
        )

    @cached_property
    def readers(self) -> tuple[Reader, ...]:
        """What reads the splits, and knows which of their images could not be read."""
        splits = (self.train, self.val, *([] if self.choice is None else [self.choice]))
        return tuple(Reader(images, self.unreadable) for images in splits)

    def training_batches(
        self, config: OptimizationConfig, *, rank: int = 0, world_size: int = 1, start_step: int = 0
    ) -> DataLoader[Batch]:
        """Return the micro-batches of one worker from `start_step` to the last step; see `train_loader`."""
        return train_loader(
            self.train,
            self.preprocessing.image_size,
            self.preprocessing.mean,
            self.preprocessing.std,
            self.augmentation,
            seed=config.seed_of_views,
            batch_size=config.batch_size,
            rank=rank,
            world_size=world_size,
            accumulation=config.accumulation,
            epochs=config.epochs,
            view_epochs=config.view_epochs,
            start_step=start_step,
            workers=self.loader_workers,
            finish_in_loader=self.finish_batches == "loader",
            reader=self.readers[0],
        )

    def scored_batches(self, batch_size: int, *, rank: int = 0, world_size: int = 1) -> list[DataLoader[Batch]]:
        """Return one worker's share of the validation split and, if there is one, of `choice`; see `eval_loader`."""
        return [
            eval_loader(
                images,
                self.preprocessing,
                batch_size,
                workers=self.loader_workers,
                rank=rank,
                world_size=world_size,
                reader=reader,
            )
            for images, reader in zip((self.val, self.choice), self.readers[1:], strict=False)
            if images is not None
        ]


def images_text(images: ImagePipeline) -> str:
    """Return what a run logs about its images."""
    train = images.train
    validation = counted(len(images.val), "validation image")
    return f"{len(train):,} training and {validation} of {counted(len(train.classes), 'class')}"


def checked_image_sets(config: DataConfig) -> ImageSets:
    """Open an image set, say what the user should know about it, and refuse it where images cannot be read.

    With `unreadable="skip"` they are only told.

    Raises:
        UserError: see `open_image_sets` and `check_images`.
    """
    sets = open_image_sets(config)
    if sets.note:
        log.warning(sets.note)
    if restricts(sets.license):
        log.info(
            f"note: the card of {config.data} states {sets.license}, which restricts its use: what is trained on it "
            "inherits that licence, unless --license states another"
        )
    for part in (sets.train, sets.val):
        try:
            check_images(part, config.check_images)
        except UnreadableImages as error:
            if config.unreadable == "fail":
                raise
            left = f"{error.readable:,} of {counted(len(part), 'image')}"
            log.warning(f"{error} (--unreadable skip: going on with {left})")
    return sets

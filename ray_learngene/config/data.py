"""Settings of image sets and augmentation."""

from __future__ import annotations

import os
import sys
from typing import Literal

from pydantic import Field, ValidationInfo, field_validator

from ray_learngene.config.base import LATER, NOTHING, RESULT, Config, StorageConfig, address
from ray_learngene.errors import UserError

IMAGE_SETS = "digits, cifar10, a folder of class folders or Parquet files at any URI, torch/NAME, hfds/NAME or wds/PATH"

Interpolation = Literal["bicubic", "bilinear", "nearest", "box", "hamming", "lanczos"]  # timm's


def no_image_set(data: str) -> UserError:
    """Return the error of an image set that is none."""
    return UserError(f"no image set {data!r}: give {IMAGE_SETS}")


def check_image_set(data: str) -> None:
    """Check that a local image set is there; opening it finds out all else.

    Raises:
        UserError: there is nothing of that name.
    """
    known = data in ("digits", "cifar10") or data.startswith(("torch/", "hfds/", "wds/"))
    if not (known or "://" in data or data.endswith(".parquet") or os.path.exists(os.path.expanduser(data))):
        raise no_image_set(data)


class DataConfig(StorageConfig):
    """Which images, and how they are checked and read."""

    decides = "images"

    data: str = Field(
        description="image set: digits, cifar10, a folder of class folders or Parquet files at any URI, torch/NAME or "
        "hfds/NAME; for WebDataset tar files see `learngene data convert`"
    )
    data_dir: str | None = Field(
        None,
        description="folder with the files of cifar10 or torch/NAME; timm's --data-dir is --data here",
        json_schema_extra=NOTHING,
    )
    image_column: str = Field("image", description="Parquet column with the encoded image")
    label_column: str = Field("label", description="Parquet column with the label (class index or class name)")
    split_column: str | None = Field(
        None,
        description="Parquet column that names the split of each row, whatever the files are called; default: the "
        "names of files and folders, else a column called split",
        json_schema_extra=LATER,
    )
    holdout: float = Field(
        0.1,
        gt=0,
        lt=1,
        description="share of each class held out for validation, if there is no validation split or "
        "validate_on asks for it",
        json_schema_extra=RESULT,
    )
    train_share: float = Field(
        1.0, gt=0, le=1, description="share of the training images that is used, per class, evenly spaced"
    )
    val_share: float = Field(
        1.0,
        gt=0,
        le=1,
        description="share of the validation images that is used, per class, evenly spaced",
        json_schema_extra=RESULT,
    )
    validate_on: Literal["val", "holdout"] = Field(
        "val",
        description="validate on the validation split, or on the share held out of the training split",
        json_schema_extra=RESULT,
    )
    check_images: Literal["auto", "full", "headers", "off"] = Field(
        "auto",
        description="check images before training: full decodes all, headers reads their headers; "
        "auto: full up to 10,000 images",
        json_schema_extra=NOTHING,
    )
    unreadable: Literal["fail", "skip"] = Field(
        "fail",
        description="an image that cannot be read: fail ends with its name, skip takes the next image and counts it",
        json_schema_extra=NOTHING,
    )
    loader_workers: int = Field(
        0, ge=0, description="data loading processes for each training worker", json_schema_extra=NOTHING
    )
    cache_gb: float = Field(
        0,
        ge=0,
        description="most GB of local copies of image sets on a host (~/.cache/ray_learngene); the least recently "
        "used are removed first; 0: no limit",
        json_schema_extra=NOTHING,
    )

    @field_validator("data")
    @classmethod
    def _address(cls, data: str) -> str:
        return address(data)

    @property
    def reads_labels(self) -> bool:
        """Check whether labels are used, so that at least two classes are needed."""
        return True


class AugmentationConfig(Config):
    """Training-time augmentation and evaluation crop, in timm's words and meanings."""

    decides = "views"

    scale: tuple[float, float] = Field((0.08, 1.0), description="random resized crop: share of the area")
    ratio: tuple[float, float] = Field((3 / 4, 4 / 3), description="random resized crop: aspect ratio")
    hflip: float = Field(0.5, ge=0, le=1, description="probability of a horizontal flip")
    color_jitter: float = Field(
        0.0, ge=0, description="colour jitter strength (off while auto_augment is on, as in timm)"
    )
    auto_augment: str | None = Field(None, description="timm auto-augment policy, e.g. rand-m9-mstd0.5-inc1")
    reprob: float = Field(0.0, ge=0, le=1, description="random erasing probability")
    mixup: float = Field(0.0, ge=0, description="mixup alpha; 0 is off")
    cutmix: float = Field(0.0, ge=0, description="cutmix alpha; 0 is off")
    mixup_prob: float = Field(1.0, ge=0, le=1, description="probability that a pair is mixed at all")
    mixup_switch_prob: float = Field(0.5, ge=0, le=1, description="probability of cutmix where both are on")
    smoothing: float = Field(0.1, ge=0, lt=1, description="label smoothing", json_schema_extra=RESULT)
    repeats: int = Field(1, ge=1, description="repeated augmentation: views of one image in an epoch (DeiT: 3)")
    crop_pct: float = Field(
        0.875,
        gt=0,
        le=1,
        description="evaluation: share of the resized image the centre crop keeps",
        json_schema_extra=RESULT,
    )
    interpolation: Interpolation = Field("bicubic", description="resize interpolation")

    @field_validator("scale", "ratio")
    @classmethod
    def _range(cls, limits: tuple[float, float], info: ValidationInfo) -> tuple[float, float]:
        share = info.field_name == "scale"
        if not 0 < limits[0] <= limits[1] <= (1 if share else sys.float_info.max):
            raise ValueError(f"give the least and the most, above 0{' and up to 1' if share else ''}")
        return limits

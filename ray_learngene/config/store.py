"""The commands that read: from a store, a pulled model or an image set."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from ray_learngene.config.base import address
from ray_learngene.config.data import DataConfig
from ray_learngene.config.delivery import LimitsConfig, refuse_torch
from ray_learngene.config.texts import LocalPath, ModelFolder, Texts
from ray_learngene.config.training import StoreConfig

PUBLISHING = timedelta(hours=1)


class PullConfig(LimitsConfig, StoreConfig):
    """`learngene pull`: the most accurate descendant within limits, or an artefact by name, verified."""

    artefact: str | None = Field(
        None, description="KIND/NAME, e.g. learngenes/x; default: the best descendant within the limits"
    )
    device: str | None = Field(
        None,
        description="device of max_latency: one with a record in the store (`learngene measure`), else those "
        "whose sweep measured on a device with this in its name",
    )
    data: str | None = Field(None, description="only descendants trained on this image set")
    sweep: str | None = Field(None, description="only descendants of this sweep")
    arm: str | None = Field(None, description="only descendants of this arm")
    format: Literal["onnx", "int8"] | None = Field(
        None, description="fetch this export alone, as `sweep --export` publishes it; default: the timm folder"
    )
    learngene: str | None = Field(
        None,
        description="a learngene that may also be expanded to the largest size within the limits; a trained descendant "
        "of it is taken where there is one",
    )
    expand: bool = Field(False, description="expand the learngene although a trained descendant is within the limits")
    out: LocalPath | None = Field(None, description="target folder; default: the artefact's name in the current folder")
    overwrite: bool = Field(False, description="replace the target folder")

    @field_validator("format", mode="before")
    @classmethod
    def _kept(cls, given: Any) -> Any:
        if isinstance(given, str):
            refuse_torch(given)
        return given

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.device and not self.max_latency:
            raise ValueError("device is where max_latency holds: give max_latency too")
        if self.expand and self.format:
            raise ValueError("expand makes a timm folder: leave format out, and export it (`learngene export`)")
        return self


class EvaluateConfig(DataConfig):
    """`learngene evaluate`: load a pulled model with plain timm and measure its accuracy."""

    model: ModelFolder = Field(description="folder of a pulled model")
    batch_size: int = Field(256, ge=1, description="images at a time")


class ConvertConfig(DataConfig):
    """`learngene data convert`: convert any image set to resized Parquet shards."""

    data: str = Field(
        description="image set: digits, cifar10, a folder of class folders or Parquet files at any URI, torch/NAME, "
        "hfds/NAME, or wds/PATH (WebDataset tar files)"
    )

    out: str = Field(description="empty target folder, at any URI")
    short_side: int | None = Field(256, ge=1, description="resize to this short side in pixels (never enlarged)")
    quality: int = Field(90, ge=1, le=100, description="JPEG quality of resized images")

    @field_validator("out")
    @classmethod
    def _out(cls, out: str) -> str:
        return address(out)


class CheckConfig(DataConfig):
    """`learngene data check`: read an image set and name what is wrong with it."""

    check_images: Literal["auto", "full", "headers", "off"] = Field(
        "full",
        description="full decodes every image, headers reads their headers; auto: full up to 10,000 images; off: "
        "look at folders and labels only",
    )
    as_json: bool = Field(False, description="print JSON")


class OutputConfig(StoreConfig):
    """Output for programs."""

    as_json: bool = Field(False, description="print JSON")


class ListConfig(OutputConfig):
    """`learngene list`: what a store holds."""

    rebuild: bool = Field(
        False, description="read every manifest and rebuild the index, after copying into a store or deleting by hand"
    )
    check: bool = Field(False, description="check that all files of every artefact are there, with their sizes")


class GcConfig(StoreConfig):
    """`learngene gc`: print the leftovers of a store, and remove them with --delete."""

    delete: bool = Field(False, description="remove what is printed; else nothing is changed")
    min_age: str = Field(
        "24h",
        validate_default=True,
        description="leave alone what changed more recently, such as 24h or 7d: another process may use it; 1h or more",
    )
    force: bool = Field(
        False,
        description="allow less than an hour, when nothing is being published: files that a publisher wrote go, too",
    )
    downloads: str | None = Field(None, description="local folder to search for leftovers of pulls too")

    @field_validator("min_age")
    @classmethod
    def _an_age(cls, text: str) -> str:
        if not re.fullmatch(r"\d{1,5}[mhd]", text):
            raise ValueError("write a number of minutes, hours or days below 100,000, such as 30m, 24h or 7d")
        return text

    @property
    def age(self) -> timedelta:
        """`min_age` as a duration; without `force` at least the time in which a publisher may still be at work."""
        unit = {"m": "minutes", "h": "hours", "d": "days"}[self.min_age[-1]]
        age = timedelta(**{unit: int(self.min_age[:-1])})
        return age if self.force else max(age, PUBLISHING)


class PageConfig(StoreConfig):
    """`learngene page`: a page to choose a model by, of all sweeps of a store; one HTML file without a network."""

    sweeps: Texts = Field((), description="only these sweeps; default: all of the store")
    out: LocalPath = Field("models.html", description="the file to write")


class ShowConfig(OutputConfig):
    """`learngene show`: everything known about one artefact, or a sweep's leaderboard."""

    artefact: str = Field(description="KIND/NAME, e.g. learngenes/x, sweeps/y or descendants/y/z")

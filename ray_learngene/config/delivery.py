"""The commands that deliver: expand, export and measure."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from ray_learngene.config.base import LATER, Config
from ray_learngene.config.data import DataConfig
from ray_learngene.config.image import ImageSize
from ray_learngene.config.texts import LocalPath, ModelFolder, ModelFolders, OptionalWholeNumbers, Quantity, Texts
from ray_learngene.config.training import StoreConfig


class LimitsConfig(Config):
    """Limits that a model must be within."""

    decides = "choice"

    max_params: Quantity = Field(None, description="limit on parameters, e.g. 3M")
    max_macs: Quantity = Field(None, description="limit on multiply-accumulates, e.g. 500M")
    max_memory: Quantity = Field(None, description="limit on estimated inference memory, e.g. 64MB")
    max_latency: Quantity = Field(None, description="limit on the latency of one image, e.g. 8ms")

    @property
    def limits(self) -> dict[str, str]:
        """The limits that were given, by quantity."""
        given = {name: getattr(self, f"max_{name}") for name in ("params", "macs", "memory", "latency")}
        return {name: text for name, text in given.items() if text}


class ExpandConfig(LimitsConfig, StoreConfig, DataConfig):
    """`learngene expand`: timm models of any size from a learngene alone, in a second and without training."""

    learngene: str = Field(description="name of the learngene in the store")
    method: str | None = Field(
        None, description="how it is expanded, e.g. sws:expansion=random; default: as the learngene was made"
    )
    depth: OptionalWholeNumbers = Field(
        None, description="layers of the model, or of each stage as 3-3-9-3; default: the learngene's"
    )
    width: int | None = Field(None, ge=1, description="width of the model; default: the learngene's")
    depths: OptionalWholeNumbers = Field(
        None,
        description="many depths, 6-15 or 4,6,8 or 2-2-6-2,3-3-9-3; with a limit: those to choose from, default 1 to "
        "the learngene's",
    )
    widths: OptionalWholeNumbers = Field(
        None, description="many widths, e.g. 192,384; with a limit: those to choose from, default what was trained"
    )
    image_size: ImageSize = Field(None, description="input size in pixels, 224 or HxW; default: the learngene's")
    device: str | None = Field(
        None,
        description="device of max_latency, with a record in the store; default: measured here, in eager torch",
    )
    seed: int = Field(0, description="seed of what the learngene does not determine")
    data: str = Field("", description="image set on whose validation split to measure the models; default: none")
    batch_size: int = Field(256, ge=1, description="images at a time with --data")
    out: LocalPath | None = Field(
        None, description="folder of the model, or of one folder per size; default: LEARNGENE-SIZE, or LEARNGENE-sizes"
    )
    overwrite: bool = Field(False, description="replace folders of models")

    @model_validator(mode="after")
    def _one_way_to_say_a_size(self) -> Self:
        if self.device and not self.max_latency:
            raise ValueError("device is where max_latency holds: give max_latency too")
        for one, many in (("depth", self.depths), ("width", self.widths)):
            if getattr(self, one) and many:
                raise ValueError(f"give {one} or {one}s, not both")
            if getattr(self, one) and self.limits:
                raise ValueError(f"a limit chooses the size: leave out {one}, or give {one}s to choose from")
        return self

    @property
    def many(self) -> bool:
        """Whether every size that was named is expanded."""
        return bool(self.depths or self.widths) and not self.limits


class QuantizationConfig(Config):
    """How int8 exports are made, and which are refused."""

    decides = "nothing"

    int8: Literal["dynamic", "static"] = Field(
        "dynamic",
        description="int8 activations are scaled for every image (dynamic), or as on training images (static)",
        json_schema_extra=LATER,
    )
    calibration_images: int = Field(
        256, ge=1, description="training images for int8 static, evenly spaced", json_schema_extra=LATER
    )
    min_agreement: float = Field(
        95.0,
        ge=0,
        le=100,
        description="refuse an int8 file that decides as the timm model on fewer validation images, in percent; of a "
        "model without classes: whose features are less similar to timm's (cosine)",
        json_schema_extra=LATER,
    )


class SweepExportConfig(QuantizationConfig):
    """Exports that are published with each descendant."""

    decides = "nothing"

    export: Texts = Field(
        (), description="publish these exports with each descendant: onnx, int8", json_schema_extra=LATER
    )

    @field_validator("export")
    @classmethod
    def _formats(cls, formats: tuple[str, ...]) -> tuple[str, ...]:
        for one in formats:
            refuse_torch(one)
        return known_formats(formats, ("onnx", "int8"))


class ExportConfig(QuantizationConfig, DataConfig):
    """`learngene export`: a file that a runtime loads, compared with the timm model before it appears."""

    model: ModelFolder = Field(description="folder of a timm model, pulled or expanded")
    format: Texts = Field(("onnx",), description="onnx, int8 (ONNX in 8 bits) and torch (torch.export), one or several")
    uint8_input: bool = Field(False, description="the file takes uint8 images [N, H, W, C] and normalises them itself")
    data: str = Field("", description="image set to compare on, and to calibrate with; default: a few random images")
    batch_size: int = Field(64, ge=1, description="images at a time in the comparison")
    out: LocalPath | None = Field(
        None, description="folder for the file; of several formats one folder each in it; default: MODEL-FORMAT"
    )
    overwrite: bool = Field(False, description="replace folders of earlier exports")

    @field_validator("format")
    @classmethod
    def _formats(cls, formats: tuple[str, ...]) -> tuple[str, ...]:
        return known_formats(formats, EXPORT_FORMATS)

    @model_validator(mode="after")
    def _images_to_calibrate_with(self) -> Self:
        if "int8" in self.format and self.int8 == "static" and not self.data:
            raise ValueError("int8 static is calibrated on training images: give data, or leave int8 static out")
        return self

    @property
    def outs(self) -> dict[str, str]:
        """The folder of each format."""
        several, model = len(self.format) > 1, Path(self.model)
        if not model.name.strip("."):  # `export .` has no name to put an ending to
            model = model.resolve()
        out = self.out or f"{model}-{'export' if several else self.format[0]}"
        return {format: f"{out}/{format}" if several else out for format in self.format}


EXPORT_FORMATS = ("onnx", "int8", "torch")


def refuse_torch(formats: str) -> None:
    """Refuse a format that no store keeps.

    Raises:
        ValueError: the text names `torch`.
    """
    if "torch" in [part.strip() for part in formats.split(",")]:
        raise ValueError(
            "a torch export holds a pickle, and a store keeps none: pull the model, then run `learngene export FOLDER "
            "--format torch`"
        )


def known_formats(formats: tuple[str, ...], known: tuple[str, ...]) -> tuple[str, ...]:
    """Return formats without repetitions.

    Raises:
        ValueError: one is unknown.
    """
    found = tuple(dict.fromkeys(part.strip() for text in formats for part in text.split(",") if part.strip()))
    if unknown := [one for one in found if one not in known]:
        raise ValueError(f"unknown format {unknown[0]!r}; choose {', '.join(known)}")
    if not found and EXPORT_FORMATS is known:
        raise ValueError(f"give one of {', '.join(known)}")
    return found


class MeasureConfig(StoreConfig):
    """`learngene measure`: time models on this device, or bring the records of another one into the store."""

    decides = "nothing"

    models: ModelFolders = Field((), description="folders of timm models or of exports, or ONNX files")
    learngene: str | None = Field(None, description="time sizes of this learngene instead")
    depths: OptionalWholeNumbers = Field(
        None, description="depths of the learngene; default: those from which all others are predicted"
    )
    widths: OptionalWholeNumbers = Field(
        None,
        description="widths of the learngene; default: those that were trained. Of several, the smallest and the "
        "largest are timed at two depths, and every other at one",
    )
    device: str | None = Field(None, description="what to call the device; default: the name of its CPU or GPU")
    runtime: Literal["onnxruntime", "torch"] = Field(
        "onnxruntime", description="torch: eager, on the GPU if there is one"
    )
    precision: Literal["fp32", "int8", "bf16", "fp16"] = Field(
        "fp32", description="of timm folders and learngenes; int8 on onnxruntime, bf16 and fp16 on torch"
    )
    threads: int = Field(1, ge=1, description="CPU threads; one is timed in CPU time, more in wall time")
    batch: int = Field(1, ge=1, description="images at a time")
    seconds: float = Field(60, gt=0, description="time limit of exporting and timing; a third is for timing at least")
    imported: str | None = Field(None, description="publish the records of this file, which measure.py wrote elsewhere")
    out: LocalPath | None = Field(
        None, description="write the record to this JSON file; default: publish it in the store"
    )
    script: str | None = Field(None, description="write measure.py to this file, for a device without this package")
    overwrite: bool = Field(False, description="replace an earlier record of the same device and conditions")

    @model_validator(mode="after")
    def _one_thing(self) -> Self:
        given = [bool(self.models), bool(self.learngene), bool(self.imported), bool(self.script)]
        if sum(given) != 1:
            raise ValueError("give models, or one of learngene, import and script")
        if (self.depths or self.widths) and not self.learngene:
            raise ValueError("depths and widths are sizes of a learngene: give learngene too")
        if self.precision in ("bf16", "fp16") and self.runtime != "torch":
            raise ValueError(f"precision {self.precision} is timed with runtime torch")
        if self.precision == "int8" and self.runtime == "torch":
            raise ValueError("precision int8 is timed with runtime onnxruntime")
        return self

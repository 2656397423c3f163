"""The architecture that sizes are of: a preset of the plain vision transformer, or any timm name that takes a depth."""

from __future__ import annotations

from typing import Any, Self

from pydantic import Field, field_validator, model_validator

from ray_learngene.config.base import LATER, Config
from ray_learngene.config.image import Channels
from ray_learngene.config.presets import PRESET_NAMES


def without_decided(arguments: dict[str, Any], classes: str, pretrained: str) -> dict[str, Any]:
    """Refuse arguments of a timm model that other settings decide."""
    for name, why in (
        ("num_classes", f"follows from the classes {classes}"),
        ("in_chans", "is a flag of its own"),
        ("pretrained", pretrained),
    ):
        if name in arguments:
            raise ValueError(f"{name} {why}: leave it out")
    return arguments


class StudentConfig(Config):
    """Architecture of the student."""

    preset: str | None = Field(
        None, description=f"size of a plain vision transformer: {PRESET_NAMES}; their sizes are below; or give student"
    )
    student: str | None = Field(
        None, description="architecture: any timm model name that takes a depth", json_schema_extra=LATER
    )
    student_args: dict[str, Any] = Field(
        {}, description="keyword arguments of that model, as YAML: '{window_size: 4}'", json_schema_extra=LATER
    )
    in_chans: Channels = Field(
        None,
        description="channels of its images: 3, or 1 for grey; default: 3, or the student's own",
        json_schema_extra=LATER,
    )

    @field_validator("student_args")
    @classmethod
    def _decided_elsewhere(cls, student_args: dict[str, Any]) -> dict[str, Any]:
        return without_decided(
            student_args,
            "of the images or the ancestry model",
            "is for ancestry models; warm_start of a distillation begins from one",
        )

    @model_validator(mode="after")
    def _keywords_of_a_student(self) -> Self:
        if self.student_args and not self.student:
            raise ValueError("student_args are keywords of a timm model: give student too")
        return self

"""The commands that make ancestry models and learngenes."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from ray_learngene.config.base import LATER, NOTHING, Config
from ray_learngene.config.data import AugmentationConfig, DataConfig
from ray_learngene.config.image import Channels, ImageSize
from ray_learngene.config.presets import PRESET_NAMES
from ray_learngene.config.student import StudentConfig, without_decided
from ray_learngene.config.texts import Stages
from ray_learngene.config.tracking import TrackingConfig
from ray_learngene.config.training import DistillationConfig, PublishConfig, StoreConfig, TrainingConfig, WorkersConfig


class AncestryConfig(
    PublishConfig, StoreConfig, DataConfig, TrainingConfig, AugmentationConfig, WorkersConfig, TrackingConfig
):
    """`learngene ancestry`: train an ancestry model, if you have none."""

    model: str = Field("deit_small_patch16_224", description="any timm model name, or local-dir:FOLDER")
    model_args: dict[str, Any] = Field({}, description="keyword arguments of that model, as YAML: '{depth: 6}'")
    pretrained: bool = Field(False, description="start from timm's pretrained weights, or the folder's")
    image_size: ImageSize = Field(None, description="input size in pixels, 224 or HxW; default: the model's own")
    in_chans: Channels = Field(
        None, description="channels of its images: 3, or 1 for grey; default: the model's own", json_schema_extra=LATER
    )

    @field_validator("model_args")
    @classmethod
    def _decided_elsewhere(cls, model_args: dict[str, Any]) -> dict[str, Any]:
        return without_decided(model_args, "of --data", "is a flag of its own")


class FeaturesConfig(Config):
    """What the ancestry model teaches: its logits or its features."""

    teach: Literal["logits", "features"] = Field(
        "logits",
        description="logits, or features: maps and the pooled vector, of any model and any images, without labels",
        json_schema_extra=LATER,
    )
    feature_layers: int = Field(
        1,
        ge=1,
        description="feature maps to teach, evenly spaced over the layers, the last layer's among them",
        json_schema_extra=LATER,
    )
    feature_loss: Literal["cosine+smooth-l1", "cosine", "smooth-l1", "mse"] = Field(
        "cosine+smooth-l1",
        description="distance of projected features from the teacher's standardised ones",
        json_schema_extra=LATER,
    )
    feature_vector: float = Field(
        1.0, ge=0, description="weight of the vector's loss next to that of the maps", json_schema_extra=LATER
    )

    @model_validator(mode="after")
    def _of_what_is_taught(self) -> Self:
        other = FeaturesConfig if self.teach == "logits" else DistillationConfig
        for name in other.model_fields.keys() - {"soft_labels"}:
            if getattr(self, name) != other.model_fields[name].default and name != "teach":
                needs = "features" if self.teach == "logits" else "logits"
                raise ValueError(f"{name} is for --teach {needs}: leave it out")
        return self


class DistillConfig(
    PublishConfig,
    StoreConfig,
    DataConfig,
    StudentConfig,
    FeaturesConfig,
    DistillationConfig,
    TrainingConfig,
    AugmentationConfig,
    WorkersConfig,
    TrackingConfig,
):
    """`learngene distill`: distil an ancestry model into a learngene."""

    ancestry: str | None = Field(
        None,
        description="the ancestry model: a timm name (pretrained weights from the hub), local-dir:FOLDER, "
        "or store:ancestries/NAME or store:descendants/SWEEP/NAME; not needed with alpha 0",
    )
    method: str = Field("any-size", description="method with its options, e.g. sws:stages=3-3-4-3-3")
    depth: Stages = Field(
        None, description="layers of the auxiliary model, or of its stages: 3-3-9-3; default: the preset's or student's"
    )
    width: int | None = Field(
        None,
        ge=1,
        description="width of the auxiliary model (of its first stage), at the same head size; default: its own",
    )
    image_size: ImageSize = Field(None, description="input size in pixels, 224 or HxW; default: the preset's")
    start: str | None = Field(None, description="learngene in the store that the auxiliary model starts from")
    warm_start: Literal["first", "middle", "last", "average"] | None = Field(
        None,
        description="start shared blocks from the ancestry model's, if it is of the student's family and no narrower: "
        "each from the first, middle or last block of the layers that it stands for, or from their average",
        json_schema_extra=LATER,
    )
    untied_epochs: int = Field(
        0,
        ge=0,
        description="of any-size: then train a block of its own for every layer for so many epochs, from labels and "
        "the ancestry model (half each); the learngene of shared blocks is NAME-shared",
        json_schema_extra=LATER,
    )
    labels: bool = Field(
        True,
        description="use the images' labels, which must be the ancestry model's classes; off: labels are never read. "
        "With --teach features they only measure",
    )

    @model_validator(mode="after")
    def _one_size(self) -> DistillConfig:
        if self.preset and self.student:
            raise ValueError("preset and student both say what the auxiliary model is: give one")
        if self.preset is None and self.student is None:
            raise ValueError(f"the auxiliary model needs a size: give preset ({PRESET_NAMES}), or student, a timm name")
        if self.start and self.warm_start:
            raise ValueError("start and warm_start both give the first weights: choose one")
        return self

    @model_validator(mode="after")
    def _teacher_needed(self) -> Self:
        if self.ancestry is not None:
            return self
        for setting, uses in (
            ("teach features", self.teach == "features"),
            ("warm_start", self.warm_start is not None),
            ("soft_labels", self.soft_labels),
            (f"alpha {self.alpha:g}", self.alpha > 0),
        ):
            if uses:
                raise ValueError(f"ancestry is required: the ancestry model, for {setting}; only alpha 0 does without")
        return self

    @model_validator(mode="after")
    def _labels_needed(self) -> DistillConfig:
        if not self.labels and self.alpha < 1:
            raise ValueError("alpha below 1 weighs the labels, but labels are off: set alpha 1 or turn labels on")
        return self

    @model_validator(mode="after")
    def _can_be_untied(self) -> Self:
        if self.untied_epochs and self.method.partition(":")[0].strip() != "any-size":
            raise ValueError(f"untied_epochs is for any-size, not for {self.method}: leave one of the two out")
        if self.untied_epochs and self.teach == "features":
            raise ValueError("untied_epochs needs logits or labels: leave it or teach out")
        return self

    @property
    def reads_labels(self) -> bool:
        """Labels are not needed with labels off, or if features are taught: a folder of images without classes is
        enough."""
        return self.labels and self.teach == "logits"


class SoftLabelsConfig(DistillConfig):
    """`learngene softlabels`: compute and cache the soft labels of a distillation with the same settings."""

    name: str = Field("", description="not used: soft labels are found by what they depend on")
    overwrite: bool = Field(
        False, description="compute what is cached again, and replace it", json_schema_extra=NOTHING
    )

    @model_validator(mode="after")
    def _logits_alone(self) -> Self:
        if self.alpha == 0:
            raise ValueError("alpha 0 makes no use of the ancestry model: there are no soft labels to compute")
        if self.teach == "features":
            raise ValueError("teach: features are not cached, only logits are: distil without softlabels")
        return self


class ExtractConfig(PublishConfig, StoreConfig):
    """`learngene extract`: take a learngene from a trained model, without distillation."""

    source: str = Field(
        description="a trained model: a timm name (pretrained weights from the hub), local-dir:FOLDER, "
        "store:ancestries/NAME, store:descendants/SWEEP/NAME, or store:learngenes/NAME, one that is a whole model"
    )
    method: str = Field(description="method with its options, e.g. weight-selection, heur-lg or wave:counts=6-2-8-8")

"""The benchmark of methods."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, PrivateAttr, field_validator, model_validator

from ray_learngene.config.base import CHOICE, LATER, NOTHING, Config, load_config
from ray_learngene.config.data import AugmentationConfig, DataConfig
from ray_learngene.config.image import Channels, ImageSize
from ray_learngene.config.presets import PRESET_NAMES
from ray_learngene.config.sweep import TrialsConfig
from ray_learngene.config.texts import LocalPath, OptionalWholeNumbers, Rates, WholeNumbers
from ray_learngene.config.training import DistillationConfig, OptimizationConfig, StoreConfig
from ray_learngene.errors import UserError

# what one arm's distillation may have otherwise; learning rates, seeds and lengths are the benchmark's
ARM_SETTINGS = frozenset(
    {*DistillationConfig.model_fields, *OptimizationConfig.model_fields, *AugmentationConfig.model_fields}
    - {"lr", "seed", "epochs", "batch_size", "soft_labels", "soft_labels_k", "soft_labels_dtype"}
)

# what the tuning on another image set may have otherwise
TRANSFER_SETTINGS = frozenset(
    {
        *DataConfig.model_fields,
        *AugmentationConfig.model_fields,
        "batch_size",
        "epochs",
        "tune_epochs",
        "lrs",
        "tune_lrs",
    }
)


class BenchArm(Config):
    """One row of a benchmark."""

    method: str = Field(description="method with its options, e.g. sws or wave:counts=6-2-8-8")
    source: Literal["auxiliary", "largest", "smallest", "each"] | None = Field(
        None,
        description="what its learngene is taken from: its own auxiliary model, or a plain model distilled at the "
        "largest size, the smallest or each; default: the method's own way",
    )
    tune: Literal["short", "full", "distilled"] = Field(
        "short",
        description="short: tune_epochs on labels; full: epochs on labels; distilled: with the ancestry model, at the "
        "FLOPs of an arm with a learngene",
    )
    epochs: int | None = Field(
        None, ge=1, description="epochs of its distillation, or of its full training; default: the recipe's"
    )

    equal: bool = Field(
        False, description="give it the epochs with which all its sizes cost what the arm named by budget costs"
    )
    settings: dict[str, Any] = Field(
        default_factory=dict,
        description="settings of its distillation that differ from the recipe's, such as {alpha: 0.5}",
    )

    @field_validator("settings")
    @classmethod
    def _of_a_distillation(cls, settings: dict[str, Any]) -> dict[str, Any]:
        for name in settings:
            if name not in ARM_SETTINGS:
                raise ValueError(f"{name} is none of an arm's own settings: {', '.join(sorted(ARM_SETTINGS))}")
        return settings

    @model_validator(mode="after")
    def _epochs_are_its_own(self) -> BenchArm:
        if self.epochs and self.tune == "distilled":
            raise ValueError("epochs of a distilled arm follow from the FLOPs of the others: leave them out")
        if self.equal and (self.epochs or self.tune == "distilled"):
            raise ValueError("the epochs of an equal arm follow from the budget: leave them out")
        return self


class BenchConfig(StoreConfig, TrialsConfig):
    """`learngene bench`: every method under one recipe, at many sizes and seeds, with what each costs in total."""

    refused: ClassVar[dict[str, str]] = {  # settings of trials that a benchmark makes itself
        "lr": "learning rates are searched: give lrs and tune_lrs",
        "layer_decay": "auxiliary models share their layers",
        "soft_labels": "what came first would pay the ancestry model for all others",
        "validate_on": "searches validate on held-out training images, the table on the validation split",
    }

    name: str = Field(description="name of the benchmark; run again, it trains only what is not finished")
    ancestry: str = Field(description="the ancestry model, as in `learngene distill`")
    preset: str = Field(description=f"size of the auxiliary models: {PRESET_NAMES}; their sizes are below")
    depth: int | None = Field(None, ge=1, description="layers of the auxiliary models; default: the preset's")
    image_size: ImageSize = Field(None, description="input size in pixels, 224 or HxW; default: the preset's")
    in_chans: Channels = Field(
        None, description="channels of the images: 3, or 1 for grey; default: 3", json_schema_extra=LATER
    )
    arms: dict[str, BenchArm] = Field(
        description="name: {method, source, tune, epochs} of every row", json_schema_extra=CHOICE
    )
    reference: str = Field(
        "scratch",
        description="the arm that the others' costs are held against",
        json_schema_extra=CHOICE,
    )
    budget: str | None = Field(
        None,
        description="the arm whose training FLOPs, at all sizes and with the teacher, equal arms get",
        json_schema_extra=CHOICE,
    )
    depths: WholeNumbers = Field(description="depths of the descendants, 6-15 or 4,6,8", json_schema_extra=CHOICE)
    widths: OptionalWholeNumbers = Field(
        None,
        description="widths of the descendants, e.g. 192,384; default: the preset's",
        json_schema_extra=CHOICE,
    )
    seeds: int = Field(
        3,
        ge=1,
        description="of every learngene and descendant: seed, seed + 1, ...",
        json_schema_extra=CHOICE,
    )
    tune_epochs: int = Field(5, ge=0, description="epochs that a descendant is tuned for")
    lrs: Rates = Field(
        (5e-4,),
        description="learning rates searched for distillation and full training",
        json_schema_extra=CHOICE,
    )
    tune_lrs: Rates = Field((5e-5,), description="learning rates searched for tuning", json_schema_extra=CHOICE)
    search_epochs: int | None = Field(
        None,
        ge=1,
        description="epochs of each distillation or full training of a search; default: half of what it decides",
    )
    search_more: int = Field(
        4,
        ge=0,
        description="learning rates added at most to a grid whose best one is at its border",
        json_schema_extra=CHOICE,
    )
    front: int = Field(
        8,
        ge=1,
        description="train a full reference for 1, 2, 4, ... times its epochs, at most this many, each size until "
        "doubling brings less than front_gain; 1: once",
        json_schema_extra=CHOICE,
    )
    front_gain: float = Field(
        0.5, ge=0, description="points of top-1 below which doubling is not worth it", json_schema_extra=CHOICE
    )
    transfer: dict[str, dict[str, Any]] = Field(
        default_factory=dict,
        description="other image sets to tune on, by name, with the settings that differ there: "
        "{flowers: {data: ./flowers, tune_epochs: 20, epochs: 60}}",
        json_schema_extra=CHOICE,
    )
    transfer_depths: OptionalWholeNumbers = Field(
        None, description="depths of the descendants on these sets; default: depths", json_schema_extra=CHOICE
    )
    out: LocalPath = Field(
        "./bench",
        description="folder for the table (Parquet, Markdown) and the plots",
        json_schema_extra=NOTHING,
    )

    _onto: str | None = PrivateAttr(None)

    @property
    def suffix(self) -> str:
        """What names of sweeps have after the benchmark's: another image set that they are on."""
        return f"-to-{self._onto}" if self._onto else ""

    def onto(self, label: str) -> BenchConfig:
        """Return the benchmark as it tunes on a set of `transfer`.

        Raises:
            UserError: a setting of the set is invalid.
        """
        values = {**self.model_dump(exclude_unset=True), **self.transfer[label], "transfer": {}}
        try:
            target = load_config(BenchConfig, values, keywords=True)
        except UserError as error:
            raise UserError(f"transfer {label!r}: {error}") from None
        target._onto = label
        return target

    @model_validator(mode="after")
    def _sets_are_usable(self) -> BenchConfig:
        for label, settings in self.transfer.items():
            odd = settings.keys() - TRANSFER_SETTINGS
            if odd:
                raise ValueError(
                    f"transfer {label!r}: {min(odd)} cannot differ: {', '.join(sorted(TRANSFER_SETTINGS))}"
                )
            if "data" not in settings:
                raise ValueError(f"transfer {label!r} needs data: its image set")
        return self

    @model_validator(mode="after")
    def _reference_is_an_arm(self) -> BenchConfig:
        for field, why in self.refused.items():
            if field in self.model_fields_set:
                raise ValueError(f"{field} cannot be set: {why}")
        if self.reference not in self.arms:
            raise ValueError(f"reference {self.reference!r} is none of the arms: {', '.join(self.arms)}")
        if self.budget is not None and (self.budget not in self.arms or self.arms[self.budget].equal):
            raise ValueError(f"budget {self.budget!r} is none of the arms that are not equal: {', '.join(self.arms)}")
        if self.budget is None and any(arm.equal for arm in self.arms.values()):
            raise ValueError("an equal arm needs a budget: name the arm that it equals")
        return self

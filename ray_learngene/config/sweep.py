"""The commands that make descendants: plan and sweep."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from ray_learngene.config.base import CHOICE, LATER, NOTHING, Config
from ray_learngene.config.data import AugmentationConfig, DataConfig
from ray_learngene.config.delivery import SweepExportConfig
from ray_learngene.config.image import ImageSize
from ray_learngene.config.presets import PRESET_NAMES
from ray_learngene.config.student import StudentConfig
from ray_learngene.config.texts import License, OptionalNumbers, OptionalWholeNumbers, Texts
from ray_learngene.config.tracking import TrackingConfig
from ray_learngene.config.training import (
    ClusterConfig,
    DistillationConfig,
    StoreConfig,
    TrainingConfig,
)


class SelectionConfig(StoreConfig):
    """Sizes and methods of the descendants."""

    decides = "choice"

    learngene: str = Field(description="name of the learngene in the store")
    budgets: Texts = Field((), description='budgets such as "params<=3M" "macs<=500M,latency<=8ms"')
    depths: OptionalWholeNumbers = Field(
        None, description="candidate depths, 6-15 or 4,6,8, or of stages: 3-3-9-3; default: 1 to the auxiliary's depth"
    )
    widths: OptionalWholeNumbers = Field(None, description="candidate widths, e.g. 192,384; default: the learngene's")
    depth_factor: OptionalNumbers = Field(
        None, description="candidate depths as factors of the learngene's, 0.25,0.5,1", json_schema_extra=LATER
    )
    width_factor: OptionalNumbers = Field(
        None, description="candidate widths as factors of the learngene's, 0.5,1", json_schema_extra=LATER
    )
    stage_depths: str | None = Field(
        None,
        description="depths of every stage that budgets choose from, in all combinations: 1-3/1-3/3-27/1-3",
        json_schema_extra=LATER,
    )
    image_size: ImageSize = Field(None, description="input size in pixels, 224 or HxW; default: the learngene's")
    arms: Texts = Field(
        (),
        description="methods to compare, METHOD[:option=value][@LEARNGENE], e.g. sws,sws:expansion=random,"
        "wave@other-{seed},scratch; default: the learngene's method and scratch",
    )
    scratch: Literal["cost", "epochs"] | None = Field(
        None,
        description="how long arms without a learngene train, such as scratch: at the total cost of the others, with "
        "their share of learngene and ancestry (cost), or for their epochs; default: cost, or as the sweep began",
    )
    seeds: int = Field(1, ge=1, description="descendants of every size and arm, with seeds seed, seed + 1, ...")
    lr_search: int = Field(
        0, ge=0, description="learning rates tried for every descendant: ten at random, then by Optuna; 0: only lr"
    )
    latency_batch: int = Field(1, ge=1, description="batch size at which latency is measured")
    latency_dtype: Literal["float32", "bfloat16", "float16"] = Field("float32", description="dtype of the measurement")
    latency_threads: int = Field(1, ge=1, description="CPU threads of the measurement")


class SiblingsConfig(Config):
    """Several descendants in one process."""

    decides = "nothing"

    siblings: int | Literal["auto"] = Field(
        "auto",
        description="models trained together in one process, sharing one data loader: a number, or auto (as many as "
        "fit in memory); 1 turns it off",
    )

    @field_validator("siblings", mode="before")
    @classmethod
    def _siblings(cls, siblings: object) -> object:
        number = int(text) if (text := str(siblings)).isdecimal() else 0
        if isinstance(siblings, bool) or (text != "auto" and number < 1):
            raise ValueError("give a number from 1 up, or auto")
        return number or "auto"

    @property
    def most_siblings(self) -> int | None:
        """Return the limit; None chooses it."""
        return None if self.siblings == "auto" else self.siblings


class TrialsConfig(
    DataConfig, DistillationConfig, TrainingConfig, AugmentationConfig, ClusterConfig, SiblingsConfig, TrackingConfig
):
    """Resources of each training."""

    decides = "nothing"

    cpus_per_trial: float = Field(1, gt=0, description="CPUs of each training")
    gpus_per_trial: float | None = Field(
        None, ge=0, description="GPU share of each, 0.25 puts four on one, 1 at most; default: 1 if there are GPUs"
    )
    in_process: bool = Field(False, description="all trainings in this process, without Ray")

    @model_validator(mode="after")
    def _one_gpu(self) -> Self:
        if self.gpus_per_trial and self.gpus_per_trial > 1:
            raise ValueError(
                f"gpus_per_trial {self.gpus_per_trial:g}: a training uses one GPU; give 1 or a share of one"
            )
        return self


class PlanConfig(SelectionConfig, TrialsConfig, StudentConfig):
    """`learngene plan`: print which sizes meet which budget, and what the sweep will cost.

    With `student` or `preset` in place of a learngene: the sizes of that architecture.
    """

    learngene: str = Field(
        "",
        description="name of the learngene in the store; or give student or preset: depths, widths and factors are "
        "then of that architecture, and neither a store nor images are needed",
    )
    data: str = Field(
        "", description="image set, to count the steps of the sweep, and its classes; default: cost per image only"
    )
    epochs: int = Field(10, ge=0, description="epochs of each descendant")
    warmup_epochs: float = Field(0, ge=0, description="linear warm-up, in epochs")
    ancestry: str | None = Field(None, description="the sweep's teacher; FLOPs leave out its forward passes")
    max_concurrent: int = Field(0, ge=0, description="trials at a time; 0: as many as the resources allow")
    name: str | None = Field(
        None, description="name of the sweep; with calibrate, its page will show this plan next to what was spent"
    )
    calibrate: bool = Field(False, description="train a few steps of every size where the sweep will run; needs data")
    distill: str | None = Field(
        None,
        description="recipe of the distillation that makes the learngene: its cost is planned too, and the learngene "
        "need not be there yet; needs calibrate",
    )
    price_per_hour: float | None = Field(
        None, gt=0, description="price of an hour of one GPU, or of one CPU where there is no GPU; needs calibrate"
    )

    @model_validator(mode="before")
    @classmethod
    def _of_a_sweep(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Return the recipe of a sweep is one of its plan, which does not use all of it."""
        return {name: value for name, value in values.items() if name in cls.model_fields or name not in SWEEPS}

    @model_validator(mode="after")
    def _whose_sizes(self) -> Self:
        sources = [name for name in ("learngene", "student", "preset") if getattr(self, name)]
        if not sources:
            raise ValueError(
                f"whose sizes? give learngene (a name in the store), student (a timm name) or preset ({PRESET_NAMES})"
            )
        if len(sources) > 1:
            raise ValueError(f"{' and '.join(sources)} both say whose sizes these are: give one")
        for name in _OF_SWEEPS if not self.learngene else ():
            if name in self.model_fields_set:
                raise ValueError(f"{name} plans a sweep, which is of a learngene: leave it out, or give learngene")
        if self.learngene and self.in_chans:
            raise ValueError("in_chans is for student and preset: a learngene has its own channels")
        return self

    @model_validator(mode="after")
    def _calibrated(self) -> Self:
        if self.calibrate and not self.data:
            raise ValueError("calibrate trains a few steps: give data")
        if self.price_per_hour and not self.calibrate:
            raise ValueError("price_per_hour is that of hours, which are measured: give calibrate too")
        if self.distill and not self.calibrate:
            raise ValueError("distill is measured: give calibrate too")
        return self


class SweepConfig(SelectionConfig, TrialsConfig, SweepExportConfig):
    """`learngene sweep`: train many descendants of one learngene in parallel."""

    name: str = Field(
        description="name of the sweep; run again, it trains only what is not finished",
        json_schema_extra=CHOICE,
    )
    epochs: int = Field(10, ge=0, description="epochs of each descendant")
    lr: float = Field(
        5e-5, gt=0, description="learning rate at a batch of 512, scaled by batch_size / 512: timm's --lr-base"
    )
    min_lr: float = Field(1e-6, ge=0, description="learning rate at the end of the cosine, as it is (not scaled)")
    warmup_epochs: float = Field(0, ge=0, description="linear warm-up, in epochs")
    ancestry: str | None = Field(
        None,
        description="tune with distillation from this ancestry model too (alpha, tau); default: labels alone",
        json_schema_extra=CHOICE,
    )
    lr_low: float = Field(1e-5, gt=0, description="lowest learning rate of the search", json_schema_extra=CHOICE)
    lr_high: float = Field(1e-2, gt=0, description="highest learning rate of the search", json_schema_extra=CHOICE)
    asha: bool = Field(
        False,
        description="stop the worse learning rates of a descendant early (ASHA); needs lr_search",
        json_schema_extra=CHOICE,
    )
    max_concurrent: int = Field(
        0,
        ge=0,
        description="trials at a time; 0: as many as the resources allow",
        json_schema_extra=NOTHING,
    )
    license: License = Field(
        None,
        description="licence of the descendants, such as apache-2.0; default: that of the models they are made from",
        json_schema_extra=NOTHING,
    )
    checkpoint_seconds: float = Field(
        60,
        ge=0,
        description="least seconds between checkpoints of a descendant; √N times as many for N siblings",
        json_schema_extra=NOTHING,
    )

    @model_validator(mode="after")
    def _search(self) -> SweepConfig:
        alone = sorted(DistillationConfig.model_fields.keys() & self.model_fields_set)
        if alone and not self.ancestry:
            raise ValueError(f"{alone[0]} says how an ancestry model teaches: give ancestry too")
        if self.in_process and self.lr_search:
            raise ValueError("lr_search needs Ray Tune: leave in_process out, or give lr")
        if self.asha and self.siblings not in ("auto", 1):
            raise ValueError("asha stops trials one by one, each alone: leave siblings out, or asha")
        if self.asha and self.lr_search < 2:
            raise ValueError("asha compares learning rates of one descendant: it needs lr_search of at least 2")
        if self.lr_low >= self.lr_high:
            raise ValueError(f"lr_low {self.lr_low:g} is not below lr_high {self.lr_high:g}")
        return self


_OF_SWEEPS = ("arms", "scratch", "seeds", "lr_search", "name", "calibrate", "distill", "price_per_hour", "ancestry")
SWEEPS = SweepConfig.model_fields.keys()

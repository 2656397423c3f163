"""One typed configuration per command.

A configuration is validated before anything starts, is read from YAML (`--config recipe.yaml`) and overridden by flags
(`learngene distill --epochs 20`: every field is a flag of the same name), and is stored inside every artefact.
"""

from __future__ import annotations

import difflib
import os
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from ray_learngene.errors import UserError

ConfigT = TypeVar("ConfigT", bound="Config")
LearningRate = Annotated[float, Field(gt=0)]


class Config(BaseModel):
    """Base of all configurations: immutable, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class DataConfig(Config):
    """Which images, and how they are checked and read."""

    data: str = Field(
        description="image set: digits, cifar10, a folder of class folders, Parquet files at any URI, "
        "torch/NAME, wds/PATH or hfds/NAME"
    )
    data_dir: str | None = Field(None, description="folder of a built-in set's files (cifar10: download or .bin files)")
    image_column: str = Field("image", description="Parquet column with the encoded image")
    label_column: str = Field("label", description="Parquet column with the label (class index or class name)")
    holdout: float = Field(
        0.1, gt=0, lt=1, description="share held out per class where the set has no validation split, or by validate_on"
    )
    train_share: float = Field(
        1.0, gt=0, le=1, description="share of the training images that is used, per class, evenly spaced"
    )
    val_share: float = Field(1.0, gt=0, le=1, description="the same of the validation images")
    validate_on: Literal["val", "holdout"] = Field(
        "val", description="validate on the validation split, or on the share held out of the training split"
    )
    check_images: Literal["auto", "full", "headers", "off"] = Field(
        "auto",
        description="check before training: decode every image (full), read headers, or off; auto: full up to 10,000",
    )
    loader_workers: int = Field(0, ge=0, description="data loading processes for each training worker")


class AugmentationConfig(Config):
    """Training-time augmentation and evaluation crop, in timm's words and meanings."""

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
    smoothing: float = Field(0.1, ge=0, lt=1, description="label smoothing")
    repeats: int = Field(1, ge=1, description="repeated augmentation: views of one image in an epoch (DeiT: 3)")
    crop_pct: float = Field(
        0.875, gt=0, le=1, description="evaluation: share of the resized image the centre crop keeps"
    )
    interpolation: Literal["bicubic", "bilinear", "nearest"] = Field("bicubic", description="resize interpolation")


class OptimizationConfig(Config):
    """Optimizer, schedule and arithmetic."""

    epochs: int = Field(150, ge=0, description="passes over the training set")
    batch_size: int = Field(512, ge=1, description="global batch size (all workers and accumulation steps together)")
    lr: float = Field(5e-4, gt=0, description="learning rate at a global batch of 512; scaled by batch_size / 512")
    min_lr: float = Field(1e-5, ge=0, description="learning rate at the end of the cosine, as it is (not scaled)")
    warmup_epochs: float = Field(5, ge=0, description="linear warm-up, in epochs")
    warmup_lr: float = Field(1e-6, ge=0, description="learning rate at the start of the warm-up, as it is (not scaled)")
    weight_decay: float = Field(0.05, ge=0, description="AdamW weight decay (not on biases, norms and embeddings)")
    clip_grad: float = Field(0.0, ge=0, description="gradient norm limit; 0 is no clipping")
    accumulation: int = Field(1, ge=1, description="micro-batches summed into one optimizer step")
    drop_path: float = Field(0.1, ge=0, lt=1, description="stochastic depth rate of the last layer, linear in depth")
    ema: float = Field(0.0, ge=0, lt=1, description="decay of the weight average that is kept beside; 0 is off")
    precision: Literal["auto", "bf16", "fp32"] = Field("auto", description="auto: bf16 where the hardware has it")
    compile: bool = Field(False, description="torch.compile the model")
    seed: int = Field(0, ge=0, description="seed of initialisation, data order and augmentation")

    @model_validator(mode="after")
    def _warm_up_ends(self) -> Self:
        if self.epochs and self.warmup_epochs >= self.epochs:
            raise ValueError(
                f"warmup_epochs {self.warmup_epochs:g} leaves nothing of {self.epochs} epochs: lower warmup_epochs"
            )
        return self


class DistillationConfig(Config):
    """How an ancestry model teaches."""

    distillation: Literal["soft", "hard"] = Field("soft", description="ancestry's probabilities, or its decision")
    alpha: float = Field(1.0, ge=0, le=1, description="weight of the distillation term; the label term has 1 - alpha")
    tau: float = Field(1.0, gt=0, description="temperature of soft distillation")


class StoreConfig(Config):
    """Where artefacts live."""

    store: str = Field(
        "./store",
        validate_default=True,
        description="the store: a folder, or s3://bucket/prefix (standard AWS variables)",
    )

    @field_validator("store")
    @classmethod
    def _absolute(cls, store: str) -> str:
        # Ray's workers run in folders of their own, where a relative path would be another one.
        return store if "://" in store else os.path.abspath(os.path.expanduser(store))


class ClusterConfig(Config):
    """Which Ray cluster runs the work, and what happens when a part of it dies."""

    address: str | None = Field(None, description="Ray cluster to connect to; default: RAY_ADDRESS, else this machine")
    max_failures: int = Field(3, ge=0, description="times that a failed worker or trial is started again")


class WorkersConfig(ClusterConfig):
    """Data-parallel training on Ray Train and DeepSpeed."""

    workers: int = Field(
        1, ge=0, description="training workers, one per GPU or CPU process; 0: this process, without Ray"
    )
    cpus_per_worker: float = Field(1, gt=0, description="CPUs reserved for each worker (data loading included)")
    use_gpu: bool | None = Field(None, description="one GPU for each worker; default: where the cluster has GPUs")
    zero: Literal[0, 1, 2, 3] = Field(1, description="DeepSpeed ZeRO stage")
    deepspeed: str | None = Field(None, description="DeepSpeed JSON file, merged over the generated configuration")
    checkpoint_every: int = Field(0, ge=0, description="optimizer steps between checkpoints; 0: once an epoch")


class PublishConfig(Config):
    """The artefact that a run publishes."""

    name: str = Field(description="name of the artefact and of its run; the same name continues an interrupted run")
    overwrite: bool = Field(False, description="start anew and replace an artefact of that name")


class AncestryConfig(PublishConfig, StoreConfig, DataConfig, OptimizationConfig, AugmentationConfig, WorkersConfig):
    """`learngene ancestry`: train an ancestry model where nobody has one."""

    model: str = Field("deit_small_patch16_224", description="any timm model name")
    model_args: dict[str, Any] = Field({}, description="keyword arguments of that model, as YAML: '{depth: 6}'")
    pretrained: bool = Field(False, description="start from timm's pretrained weights")
    image_size: int | None = Field(None, ge=1, description="input size in pixels; default: the model's own")


class DistillConfig(
    PublishConfig, StoreConfig, DataConfig, DistillationConfig, OptimizationConfig, AugmentationConfig, WorkersConfig
):
    """`learngene distill`: ancestry model and images to a learngene."""

    ancestry: str = Field(
        description="the ancestry model: a timm name (pretrained weights from the hub), local-dir:FOLDER, "
        "or store:ancestries/NAME or store:descendants/SWEEP/NAME"
    )
    method: str = Field("sws", description="method with its options, e.g. sws:stages=3-3-4-3-3")
    preset: str = Field(description="size of the auxiliary model: ti, s, b, micro or nano")
    depth: int | None = Field(None, ge=1, description="layers of the auxiliary model; default: the preset's")
    width: int | None = Field(
        None, ge=1, description="width of the auxiliary model, at the preset's head size; default: the preset's"
    )
    image_size: int | None = Field(None, ge=1, description="input size in pixels; default: the preset's")
    start: str | None = Field(None, description="learngene in the store that the auxiliary model starts from")
    labels: bool = Field(True, description="the images' labels are the ancestry's classes; off: labels are never read")

    @model_validator(mode="after")
    def _labels_needed(self) -> DistillConfig:
        if not self.labels and self.alpha < 1:
            raise ValueError("alpha below 1 weighs the labels, but labels are off: set alpha 1 or turn labels on")
        return self


class ExtractConfig(PublishConfig, StoreConfig):
    """`learngene extract`: take a learngene from a trained model, without distillation."""

    source: str = Field(
        description="a trained vision transformer (class_token=False, global_pool=avg): local-dir:FOLDER, "
        "store:ancestries/NAME, store:descendants/SWEEP/NAME, or store:learngenes/NAME, one that is a whole model"
    )
    method: str = Field(description="method with its options, e.g. weight-selection, heur-lg or wave:counts=6-2-8-8")


class SelectionConfig(StoreConfig):
    """Which descendants: budgets, depths and widths become specs."""

    learngene: str = Field(description="name of the learngene in the store")
    budgets: tuple[str, ...] = Field((), description='budgets such as "params<=3M" "macs<=500M,latency<=8ms"')
    depths: str | None = Field(None, description="candidate depths, 6-15 or 4,6,8; default: 1 to the auxiliary's depth")
    widths: str | None = Field(None, description="candidate widths, e.g. 192,384; default: the learngene's")
    image_size: int | None = Field(None, ge=1, description="input size in pixels; default: the learngene's")
    arms: tuple[str, ...] = Field(
        (),
        description="methods to compare, METHOD[:option=value][@LEARNGENE], e.g. sws,sws:expansion=random,"
        "wave@other-{seed},scratch; default: the learngene's method and scratch",
    )
    seeds: int = Field(1, ge=1, description="descendants of every size and arm, with seeds seed, seed + 1, ...")
    lr_search: int = Field(0, ge=0, description="learning rates tried for every descendant by Optuna; 0: only lr")
    latency_batch: int = Field(1, ge=1, description="batch size at which latency is measured")
    latency_dtype: Literal["float32", "bfloat16", "float16"] = Field("float32", description="dtype of the measurement")
    latency_threads: int = Field(1, ge=1, description="CPU threads of the measurement")


class PlanConfig(SelectionConfig, DataConfig, OptimizationConfig):
    """`learngene plan`: which specs meet which budget and what the sweep will cost."""

    data: str = Field("", description="image set, to count the steps of the sweep; default: cost per image only")
    epochs: int = Field(10, ge=0, description="epochs of each descendant")
    warmup_epochs: float = Field(0, ge=0, description="linear warm-up, in epochs")


class SweepConfig(
    SelectionConfig, DataConfig, DistillationConfig, OptimizationConfig, AugmentationConfig, ClusterConfig
):
    """`learngene sweep`: many descendants in parallel from one learngene."""

    name: str = Field(description="name of the sweep; run again, it trains only what is not finished")
    epochs: int = Field(10, ge=0, description="epochs of each descendant")
    lr: float = Field(5e-5, gt=0, description="learning rate at a batch of 512; scaled by batch_size / 512")
    min_lr: float = Field(1e-6, ge=0, description="learning rate at the end of the cosine, as it is (not scaled)")
    warmup_epochs: float = Field(0, ge=0, description="linear warm-up, in epochs")
    ancestry: str | None = Field(
        None, description="tune with distillation from this ancestry model too (alpha, tau); default: labels alone"
    )
    lr_low: float = Field(1e-5, gt=0, description="lowest learning rate of the search")
    lr_high: float = Field(1e-2, gt=0, description="highest learning rate of the search")
    asha: bool = Field(False, description="stop the worse learning rates of a descendant early (ASHA); needs lr_search")
    cpus_per_trial: float = Field(1, gt=0, description="CPUs of each trial")
    gpus_per_trial: float | None = Field(
        None, ge=0, description="GPU share of each trial, 0.25 puts four on one; default: 1 where the cluster has GPUs"
    )
    max_concurrent: int = Field(0, ge=0, description="trials at a time; 0: as many as the resources allow")
    in_process: bool = Field(False, description="one trial after another in this process, without Ray")
    checkpoint_seconds: float = Field(60, ge=0, description="at most one checkpoint of a descendant in this time")

    @model_validator(mode="after")
    def _search(self) -> SweepConfig:
        if self.gpus_per_trial and self.gpus_per_trial > 1 and self.gpus_per_trial % 1:
            raise ValueError(f"gpus_per_trial {self.gpus_per_trial:g}: above 1 only whole GPUs can be had")
        alone = sorted(DistillationConfig.model_fields.keys() & self.model_fields_set)
        if alone and not self.ancestry:
            raise ValueError(f"{alone[0]} says how an ancestry model teaches: give ancestry too")
        if self.in_process and self.lr_search:
            raise ValueError("lr_search needs Ray Tune: leave in_process out, or give lr")
        if self.asha and self.lr_search < 2:
            raise ValueError("asha compares learning rates of one descendant: it needs lr_search of at least 2")
        if self.lr_low >= self.lr_high:
            raise ValueError(f"lr_low {self.lr_low:g} is not below lr_high {self.lr_high:g}")
        return self


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


class BenchConfig(StoreConfig, DataConfig, DistillationConfig, OptimizationConfig, AugmentationConfig, ClusterConfig):
    """`learngene bench`: every method under one recipe, at many sizes and seeds, with what each costs in total."""

    name: str = Field(description="name of the benchmark; run again, it trains only what is not finished")
    ancestry: str = Field(description="the ancestry model, as in `learngene distill`")
    preset: str = Field(description="size of the auxiliary models: ti, s, b, micro or nano")
    depth: int | None = Field(None, ge=1, description="layers of the auxiliary models; default: the preset's")
    image_size: int | None = Field(None, ge=1, description="input size in pixels; default: the preset's")
    arms: dict[str, BenchArm] = Field(description="name: {method, source, tune} of every row")
    reference: str = Field("scratch", description="the arm that the others' costs are held against")
    depths: str = Field(description="depths of the descendants, 6-15 or 4,6,8")
    widths: str | None = Field(None, description="widths of the descendants, e.g. 192,384; default: the preset's")
    seeds: int = Field(3, ge=1, description="of every learngene and descendant: seed, seed + 1, ...")
    tune_epochs: int = Field(5, ge=0, description="epochs that a descendant is tuned for")
    lrs: tuple[LearningRate, ...] = Field(
        (5e-4,), min_length=1, description="learning rates searched for distillation and full training"
    )
    tune_lrs: tuple[LearningRate, ...] = Field((5e-5,), min_length=1, description="learning rates searched for tuning")
    search_epochs: int = Field(10, ge=1, description="epochs of each distillation or full training of the search")
    out: str = Field("./bench", description="folder for the table (Parquet, Markdown) and the plots")
    cpus_per_trial: float = Field(1, gt=0, description="CPUs of each distillation and descendant")
    gpus_per_trial: float | None = Field(None, ge=0, description="GPU share of each; default: 1 where there are GPUs")
    in_process: bool = Field(False, description="one training after another in this process, without Ray")

    @model_validator(mode="after")
    def _reference_is_an_arm(self) -> BenchConfig:
        for field, why in (
            ("lr", "learning rates are searched: give lrs and tune_lrs"),
            ("validate_on", "searches validate on held-out training images, the table on the validation split"),
        ):
            if field in self.model_fields_set:
                raise ValueError(f"{field} cannot be set: {why}")
        if self.reference not in self.arms:
            raise ValueError(f"reference {self.reference!r} is none of the arms: {', '.join(self.arms)}")
        return self


class PullConfig(StoreConfig):
    """`learngene pull`: the most accurate descendant within limits, or an artefact by name, verified."""

    artefact: str | None = Field(
        None, description="KIND/NAME, e.g. learngenes/x; default: the best descendant within the limits"
    )
    max_params: str | None = Field(None, description="limit on parameters, e.g. 3M")
    max_macs: str | None = Field(None, description="limit on multiply-accumulates, e.g. 500M")
    max_memory: str | None = Field(None, description="limit on estimated inference memory, e.g. 64MB")
    max_latency: str | None = Field(None, description="limit on the latency measured in the sweep, e.g. 8ms")
    sweep: str | None = Field(None, description="only descendants of this sweep")
    arm: str | None = Field(None, description="only descendants of this arm")
    out: str | None = Field(None, description="target folder; default: the artefact's name in the current folder")
    overwrite: bool = Field(False, description="replace the target folder")


class EvaluateConfig(DataConfig):
    """`learngene evaluate`: load a pulled model with plain timm and measure its accuracy."""

    model: str = Field(description="folder of a pulled model")
    batch_size: int = Field(256, ge=1, description="images at a time")


class ConvertConfig(DataConfig):
    """`learngene data convert`: any image set to resized Parquet shards."""

    out: str = Field(description="empty target folder, at any URI")
    short_side: int | None = Field(256, ge=1, description="resize to this short side in pixels (never enlarged)")
    quality: int = Field(90, ge=1, le=100, description="JPEG quality of resized images")


class CheckConfig(DataConfig):
    """`learngene data check`: read an image set and name what is wrong with it."""

    check_images: Literal["auto", "full", "headers", "off"] = Field("full", description="decode all, or read headers")


class ListConfig(StoreConfig):
    """`learngene list`: what a store holds."""


class ShowConfig(StoreConfig):
    """`learngene show`: everything known about one artefact, or a sweep's leaderboard."""

    artefact: str = Field(description="KIND/NAME, e.g. learngenes/x, sweeps/y or descendants/y/z")


def load_config(cls: type[ConfigT], flags: dict[str, Any], recipe: str | Path | None = None) -> ConfigT:
    """Build a configuration from a YAML recipe and flags that override it.

    Raises:
        UserError: the recipe cannot be read, or a key or value is wrong; one line that names it.
    """
    values = {**(read_recipe(recipe) if recipe else {}), **flags}
    try:
        return cls(**values)
    except ValidationError as error:
        raise UserError(_explain(error, cls, flags, recipe)) from None


def read_recipe(path: str | Path) -> dict[str, Any]:
    """The keys of a YAML recipe."""
    try:
        values = yaml.safe_load(Path(path).read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"recipe {path}: {getattr(error, 'strerror', None) or 'not a text file'}") from None
    except yaml.YAMLError as error:
        raise UserError(f"recipe {path}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise UserError(f"recipe {path}: expected 'key: value' lines")
    return {str(key).replace("-", "_"): value for key, value in values.items()}


def _explain(error: ValidationError, cls: type[Config], flags: dict[str, Any], recipe: str | Path | None) -> str:
    first = error.errors()[0]
    message = first["msg"].removeprefix("Value error, ")
    if not first["loc"]:
        return message
    key, *inside = map(str, first["loc"])
    where = f"--{key.replace('_', '-')}" if key in flags or not recipe else f"recipe {recipe}: {key}"
    if inside:
        what = "no such setting" if first["type"] == "extra_forbidden" else f"{message[0].lower()}{message[1:]}"
        return f"{where}: {'.'.join(inside)}: {what}"
    if first["type"] == "missing":
        return f"--{key.replace('_', '-')} is required: {cls.model_fields[key].description}"
    if first["type"] == "extra_forbidden":
        near = difflib.get_close_matches(key, cls.model_fields, n=1)
        return f"{where}: no such setting" + (f"; did you mean {near[0]}?" if near else "")
    return f"{where}: {message[0].lower()}{message[1:]}, got {first['input']!r}"

"""Settings of training: optimizer and schedule, distillation, cluster, store."""

from __future__ import annotations

import os
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from ray_learngene.config.base import LATER, NOTHING, RESULT, ROUNDING, Config, StorageConfig, address
from ray_learngene.config.texts import License
from ray_learngene.progress import counted


class OptimizationConfig(Config):
    """Optimizer, schedule and arithmetic."""

    epochs: int = Field(150, ge=0, description="passes over the training set")
    batch_size: int = Field(512, ge=1, description="global batch size (all workers and accumulation steps together)")
    lr: float = Field(
        5e-4,
        gt=0,
        description="learning rate at a global batch of 512, scaled by batch_size / 512: timm's --lr-base",
    )
    min_lr: float = Field(1e-5, ge=0, description="learning rate at the end of the cosine, as it is (not scaled)")
    warmup_epochs: float = Field(
        5, ge=0, description="linear warm-up, in epochs; by default half of a run that is no longer than the warm-up"
    )
    warmup_lr: float = Field(1e-6, ge=0, description="learning rate at the start of the warm-up, as it is (not scaled)")
    opt: str = Field(
        "adamw", description="optimizer: a name of timm, e.g. adamw, lion, nadamw or lamb", json_schema_extra=LATER
    )
    opt_args: dict[str, Any] = Field(
        {},
        description="arguments of that optimizer, as YAML: '{betas: [0.9, 0.95]}'; default: its own",
        json_schema_extra=LATER,
    )
    layer_decay: float = Field(
        1.0,
        gt=0,
        le=1,
        description="each layer's learning rate is this share of the next one's, as tuning of pretrained models needs; "
        "1 is off",
        json_schema_extra=LATER,
    )
    weight_decay: float = Field(0.05, ge=0, description="weight decay (not on biases, norms and embeddings)")
    clip_grad: float = Field(0.0, ge=0, description="gradient norm limit; 0 is no clipping")
    accumulation: int = Field(1, ge=1, description="micro-batches summed into one optimizer step")
    drop_path: float = Field(0.1, ge=0, lt=1, description="stochastic depth rate of the last layer, linear in depth")
    ema: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="decay of the average of weights (EMA) that is published next to the last ones; 0 is off",
    )
    precision: Literal["auto", "bf16", "fp32"] = Field(
        "auto", description="auto is bf16 on GPUs that support it, else fp32"
    )
    compile: bool = Field(
        False,
        description="torch.compile each kind of layer once, and the ancestry model; needs g++ and Python's headers, "
        "excludes ZeRO-3; results differ by rounding",
        json_schema_extra=ROUNDING,
    )
    grad_checkpointing: bool = Field(
        False,
        description="compute the activations inside blocks again in the backward pass instead of storing them: less "
        "memory, a third more computation, equal results",
        json_schema_extra={**NOTHING, **LATER},
    )
    seed: int = Field(0, ge=0, description="seed of initialisation, stochastic depth, data order and augmentation")
    view_seed: int | None = Field(None, ge=0, description="seed of data order and augmentation; default: seed")
    view_epochs: int = Field(0, ge=0, description="order and augmentation repeat after so many epochs; 0: never")

    @field_validator("precision", mode="before")
    @classmethod
    def _timms_words(cls, precision: object) -> object:
        return {"bfloat16": "bf16", "float32": "fp32"}.get(str(precision), precision)

    @field_validator("opt_args")
    @classmethod
    def _flags_of_their_own(cls, opt_args: dict[str, Any]) -> dict[str, Any]:
        for name in ("lr", "weight_decay", "layer_decay"):
            if name in opt_args:
                raise ValueError(f"{name} is a flag of its own: leave it out")
        return opt_args

    @property
    def seed_of_views(self) -> int:
        """Seed of data order and augmentation."""
        return self.seed if self.view_seed is None else self.view_seed

    @model_validator(mode="after")
    def _warm_up_ends(self) -> Self:
        if self.epochs and self.warmup_epochs >= self.epochs:
            if "warmup_epochs" not in self.model_fields_set:
                self.__dict__["warmup_epochs"] = self.epochs / 2
                return self
            raise ValueError(
                f"warmup_epochs {self.warmup_epochs:g} leaves nothing of {counted(self.epochs, 'epoch')}: "
                "lower warmup_epochs"
            )
        return self


class SpeedConfig(Config):
    """Speed, without any change of results."""

    decides = "nothing"

    finish_batches: Literal["device", "loader"] = Field(
        "device",
        description="where training batches are normalised, erased and mixed: on the device or in the loader processes",
    )
    checkpoint_uploads: Literal["background", "wait"] = Field(
        "background", description="upload checkpoints while training goes on, or wait until each is in the store"
    )
    loss_check_steps: int = Field(
        50, ge=1, description="steps between checks for a loss that is not finite, on GPUs or several workers"
    )


class TrainingConfig(OptimizationConfig, SpeedConfig):
    """Everything about the steps of a training run."""

    publish: Literal["last", "best"] = Field(
        "last",
        description="weights to publish: of the last epoch, or of the best one, the untrained model included; best is "
        "chosen on a share (holdout) of the training images that is left out of training, never on those reported",
        json_schema_extra=LATER,
    )


class DistillationConfig(Config):
    """How an ancestry model teaches."""

    decides = "teaching"

    distillation: Literal["soft", "hard"] = Field(
        "soft", description="learn the ancestry model's probabilities (soft), or its top class (hard)"
    )
    alpha: float = Field(
        1.0,
        ge=0,
        le=1,
        description="weight of the distillation term; the label term has 1 - alpha. 0: no teacher forward pass",
    )
    tau: float = Field(1.0, gt=0, description="temperature of soft distillation")
    soft_labels: bool = Field(
        False, description="read the ancestry model's cached logits from the store; compute and cache what is missing"
    )
    soft_labels_k: int = Field(
        100,
        ge=1,
        description="highest logits cached for each image, the others as one sum; at tau above 1 cache all classes",
    )
    soft_labels_dtype: Literal["float16", "float32"] = Field("float16", description="type in which they are cached")


class StoreConfig(StorageConfig):
    """Where artefacts live."""

    decides = "nothing"

    store: str = Field(
        "./store",
        validate_default=True,
        description="the store: a folder, s3://bucket/prefix (standard AWS variables), gs:// or abfs://",
    )
    store_patience: float = Field(
        300.0, ge=0, description="seconds to retry an operation while the bucket does not answer"
    )

    @field_validator("store")
    @classmethod
    def _absolute(cls, store: str) -> str:
        address(store)
        # Ray's workers run in folders of their own, where a relative path would be another one.
        return store if "://" in store else os.path.abspath(os.path.expanduser(store))


class ClusterConfig(Config):
    """Which Ray cluster runs the work, and what happens when a part of it dies."""

    decides = "nothing"

    address: str | None = Field(None, description="Ray cluster to connect to; default: RAY_ADDRESS, else this machine")
    max_failures: int = Field(3, ge=0, description="restarts of a failed worker or trial")


class WorkersConfig(ClusterConfig):
    """Data-parallel training on Ray Train and DeepSpeed."""

    decides = "nothing"

    workers: int | str = Field(
        1,
        description="training workers, each with its GPU or CPUs; 2:8 starts with 2 to 8, as there is room, and grows; "
        "0: this process, without Ray. DataLoader processes: --loader-workers",
    )
    resize_seconds: float = Field(60, gt=0, description="seconds between looks for more workers, with --workers 2:8")
    cpus_per_worker: float = Field(1, gt=0, description="CPUs reserved for each worker (data loading included)")
    use_gpu: bool | None = Field(None, description="one GPU for each worker; default: where there are GPUs")
    zero: Literal[0, 1, 2, 3] | None = Field(
        None,
        description="DeepSpeed ZeRO stage; default: 1 where AdamW's moments take a GiB or more, else 0",
        json_schema_extra=RESULT,
    )
    deepspeed: str | None = Field(None, description="DeepSpeed JSON file, merged over the generated configuration")
    checkpoint_every: int = Field(
        0,
        ge=0,
        description="optimizer steps between checkpoints, more if an upload takes longer; 0: once an epoch",
    )

    @field_validator("workers", mode="before")
    @classmethod
    def _workers(cls, workers: object) -> object:
        least, colon, most = str(workers).partition(":")
        numbers = [int(part) for part in (least, most) if part.isdecimal()]
        if isinstance(workers, bool) or len(numbers) != (2 if colon else 1):
            raise ValueError("give a number of workers, or the fewest and the most as in 2:8")
        if colon and not 1 <= numbers[0] <= numbers[1]:
            raise ValueError("the fewest workers come first and are at least one, as in 2:8")
        return str(workers) if colon else numbers[0]

    @property
    def least_workers(self) -> int:
        return int(str(self.workers).partition(":")[0])

    @property
    def most_workers(self) -> int:
        return int(str(self.workers).rpartition(":")[2])


class PublishConfig(Config):
    """The artefact that a run publishes."""

    name: str = Field(description="name of the artefact and of its run; the same name continues an interrupted run")
    overwrite: bool = Field(
        False, description="start again and replace an artefact of that name", json_schema_extra=NOTHING
    )
    license: License = Field(
        None,
        description="licence of what is published, such as apache-2.0; default: that of the model it is made from",
        json_schema_extra=NOTHING,
    )

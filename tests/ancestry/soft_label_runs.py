"""Small distillations, with the answers of an ancestry model that are asked, kept or read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from torch import Tensor, nn

from ray_learngene.ancestry.answers import Answers
from ray_learngene.ancestry.model import Ancestry
from ray_learngene.config import AugmentationConfig, DataConfig, DistillationConfig, TrainingConfig
from ray_learngene.data.image_set import Subset
from ray_learngene.data.open import open_image_sets
from ray_learngene.data.pipeline import ImagePipeline
from ray_learngene.methods.registry import create_method
from ray_learngene.models.preprocessing import Preprocessing
from ray_learngene.models.specs import PRESETS
from ray_learngene.store.checkpoints import StoreCheckpoints
from ray_learngene.store.store import Store
from ray_learngene.training.batches import Batches
from ray_learngene.training.checkpoints import BackgroundCheckpoints
from ray_learngene.training.engine import TorchEngine
from ray_learngene.training.lockstep import train
from ray_learngene.training.objectives import DistillationLoss, DistillationObjective
from ray_learngene.training.optimizers import create_optimizer
from ray_learngene.training.trainer import Trainer
from ray_learngene.training.world import World

CPU = torch.device("cpu")
STRONG = AugmentationConfig(mixup=0.8, cutmix=1.0, reprob=0.25, repeats=2, scale=(0.7, 1.0))
CONFIG = TrainingConfig(epochs=3, batch_size=32, lr=4e-3, warmup_epochs=0.5, drop_path=0.2, seed=3, ema=0.9)
EXACT = DistillationConfig(soft_labels=True, soft_labels_dtype="float32")
STEPS = 4


def some_images(augmentation: AugmentationConfig = STRONG) -> ImagePipeline:
    sets = open_image_sets(DataConfig(data="digits"))
    statistics = (0.5, 0.5, 0.5)
    preprocessing = Preprocessing(image_size=8, mean=statistics, std=statistics, crop_pct=1.0, interpolation="bicubic")
    train_set, val = Subset(sets.train, np.arange(32 * STEPS + 5)), Subset(sets.val, np.arange(20))
    return ImagePipeline(train_set, val, preprocessing, augmentation)


def vision_transformer() -> nn.Module:
    torch.manual_seed(5)
    size = {"img_size": 8, "patch_size": 4, "embed_dim": 32, "depth": 1, "num_heads": 2}
    model = timm.create_model("deit_tiny_patch16_224", **size, num_classes=10, class_token=False, global_pool="avg")
    nn.init.normal_(model.head.weight, std=2)  # decided answers
    return model


def answers_of(
    folder: Path, images: ImagePipeline, ancestry: Ancestry, config: TrainingConfig = CONFIG, **changes: Any
) -> Answers:
    teaching = EXACT.model_copy(update=changes)
    return Answers(config, teaching, images, ancestry, Store(str(folder)), CPU, None)


class Interrupted(Exception):
    pass


def distilled(
    folder: Path,
    images: ImagePipeline,
    ancestry: Ancestry,
    answers: Answers | None,
    name: str = "run",
    stop_at: int | None = None,
    config: TrainingConfig = CONFIG,
    loss: DistillationLoss | None = None,
) -> tuple[dict[str, Tensor], int]:
    """Return the weights after a run, with their average, and how many answers were read."""
    torch.manual_seed(0)
    model = create_method("sws:stages=1-1").auxiliary(PRESETS["nano"].replace(depth=2), drop_path=config.drop_path)
    optimizer = create_optimizer(model, config)

    def due(step: int, steps_per_epoch: int, seconds: float) -> bool:
        if stop_at is not None and step == stop_at + 1:
            raise Interrupted
        return step == stop_at

    stored = StoreCheckpoints(Store(str(folder)), f"{name}/state")
    with BackgroundCheckpoints(stored) as checkpoints:
        trainer = Trainer(
            TorchEngine(model, optimizer, accumulation=config.accumulation, clip_grad=1.0),
            optimizer,
            DistillationObjective(None if answers else ancestry, loss or DistillationLoss(tau=2.0)),
            images,
            config,
            world=World(CPU),
            checkpoints=checkpoints,
            checkpoint_due=due,
            report=lambda metrics: None,
        )
        train([trainer], Batches(images, config, trainer.world, answers))
    assert trainer.ema is not None
    averages = {f"ema.{key}": tensor for key, tensor in trainer.ema.module.state_dict().items()}
    return {**model.state_dict(), **averages}, trainer.progress.answers_read


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def unasked(ancestry: Ancestry) -> Ancestry:
    """Return the same model, which must not be run or moved."""

    class Unasked(Ancestry):
        def forward(self, images: Tensor) -> Tensor:
            raise AssertionError("asked")

        def to(self, *args: Any, **kwargs: Any) -> Any:
            raise AssertionError("moved")

    return Unasked(ancestry.model)

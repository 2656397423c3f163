"""Train an ancestry model.

learngene ancestry --data photos --model levit_384 --pretrained --name photos --epochs 20 --workers 1
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ray_learngene.ancestry.classes import order_of
from ray_learngene.ancestry.model import create_timm
from ray_learngene.ancestry.origin import log_license, origin_of
from ray_learngene.config import AncestryConfig
from ray_learngene.data.pipeline import ImagePipeline, checked_image_sets
from ray_learngene.distillation.run import run
from ray_learngene.distillation.task import open_store
from ray_learngene.errors import UserError
from ray_learngene.models.card import model_card
from ray_learngene.models.origin import Origin, data_name
from ray_learngene.models.preprocessing import Preprocessing
from ray_learngene.models.timm_folder import export_timm, labels_of
from ray_learngene.provenance import publishable
from ray_learngene.store.manifest import Kind, Manifest
from ray_learngene.store.store import Store
from ray_learngene.training.evaluation import LabelScorer, Scorer
from ray_learngene.training.flops import training_flops
from ray_learngene.training.objectives import LabelObjective, Objective

if TYPE_CHECKING:
    from ray.train import UserCallback

log = logging.getLogger(__name__)


@dataclass
class AncestryTask:
    """Cross-entropy training of any timm model."""

    config: AncestryConfig
    store: Store
    images: ImagePipeline
    module: nn.Module
    labels: tuple[str, ...]
    facts: dict[str, Any]
    origin: Origin
    kind: Kind = field(default="ancestry", init=False)

    def objective(self, device: torch.device, autocast: torch.dtype | None) -> Objective:
        return LabelObjective(self.config.smoothing)

    def answers(self, device: torch.device, autocast: torch.dtype | None) -> None:
        return None

    def scorer(self, device: torch.device, autocast: torch.dtype | None) -> Scorer:
        return LabelScorer(device, autocast)

    def flops(self, steps: int) -> dict[str, int]:
        image = self.images.preprocessing.image_size
        return {
            "flops": training_flops(self.module, image, batch=self.config.batch_size, steps=steps),
            "teacher_flops": 0,
        }

    def identity(self) -> dict[str, Any]:
        return self.facts

    def write(self, module: nn.Module, folder: Path) -> dict[str, Any]:
        export_timm(
            module,
            folder,
            labels=self.labels,
            preprocessing=self.images.preprocessing,
            tag=self.config.name,
            origin=self.origin,
        )
        return {
            "model": publishable(self.config.model),
            "model_args": publishable(self.config.model_args),
            "labels": list(self.labels),
            "parameters": sum(parameter.numel() for parameter in module.parameters()),
        }

    def card(self, metadata: dict[str, Any]) -> str:
        metrics = metadata["metrics"]
        averaged = {"top-1 of the averaged weights": metrics["ema_top1"]} if "ema_top1" in metrics else {}
        return model_card(
            "ancestry_card.md",
            name=self.config.name,
            origin=self.origin,
            data=data_name(self.config.data),
            split=self.config.validate_on,
            metrics={"top-1": metrics["top1"], **averaged},
            metadata=metadata,
        )


def _create(config: AncestryConfig, classes: int) -> nn.Module:
    """Create the model; the input size and stochastic depth are left out if it takes none."""
    settings = {"img_size": config.image_size, "drop_path_rate": config.drop_path, **config.model_args}
    while True:
        torch.manual_seed(config.seed)
        try:
            return create_timm(config.model, "--model", pretrained=config.pretrained, num_classes=classes, **settings)
        except UserError as error:
            ours = settings.keys() - config.model_args.keys()
            if "drop_path_rate" in ours and "drop_path_rate" in str(error):
                del settings["drop_path_rate"]  # a model without paths to drop
                if config.drop_path and "drop_path" in config.model_fields_set:
                    log.warning(f"{config.model} has no stochastic depth: --drop-path is left out")
            elif "img_size" in ours and config.image_size:
                del settings["img_size"]  # a model of no fixed input size
            else:
                raise


def _other_classes(module: nn.Module, classes: Sequence[str]) -> tuple[str, ...]:
    """The classes of a model that kept its head, if they are named and are not these in this order."""
    names = getattr(module, "pretrained_cfg", {}).get("label_names") or ()
    if len(names) != len(classes) or order_of(labels := labels_of(module), classes) == [*range(len(classes))]:
        return ()
    return labels


def _refuse_shared_memory(model: nn.Module, name: str) -> None:
    """Refuse weights that share memory: safetensors would refuse them after training."""
    seen: dict[int, str] = {}
    for part, tensor in model.state_dict().items():
        if tensor.numel() and (first := seen.setdefault(tensor.data_ptr(), part)) != part:
            raise UserError(
                f"--model {name}: {first} and {part} share memory, which timm's model folders cannot hold: "
                "choose another model"
            )


def train_ancestry(config: AncestryConfig, callbacks: Sequence[UserCallback] = ()) -> Manifest:
    """Train an ancestry model on labelled images and publish it in the store.

    Args:
        callbacks: Ray Train's (`ray.train.UserCallback`), which run in its controller.

    Raises:
        UserError: see the message; nothing has been trained then.
    """
    store = open_store(config, "ancestry")
    sets = checked_image_sets(config)
    module = _create(config, len(sets.train.classes))
    _refuse_shared_memory(module, config.model)
    if config.pretrained and (names := _other_classes(module, sets.train.classes)):
        log.info(
            f"--model {config.model} has other classes than --data {config.data} by name and order ({names[0]}, ...): "
            "its head begins with those"
        )
    changes: dict[str, Any] = {"image_size": config.image_size} if config.image_size else {}
    preprocessing = Preprocessing.of(
        module,
        f"--model {config.model}",
        crop_pct=config.crop_pct,
        interpolation=config.interpolation,
        **changes,
    )
    images = ImagePipeline.of(sets, preprocessing, config)
    sources = [origin_of(config.model, store, module.pretrained_cfg)] if config.pretrained else []
    for source in sources:
        log_license(config.model, source)
    origin = Origin.join(sources, data=data_name(config.data), stated=config.license)
    facts = {"data_sha256": sets.train.fingerprint}
    return run(AncestryTask(config, store, images, module, sets.train.classes, facts, origin), callbacks)

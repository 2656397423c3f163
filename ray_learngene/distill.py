"""Distillation: an ancestry model and images become a learngene.

learngene distill --data digits --ancestry store:ancestries/digits --preset nano --name digits --workers 2
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ray_learngene.ancestry import Ancestry, load_ancestry
from ray_learngene.cluster_training import check_early, run
from ray_learngene.config import DistillConfig
from ray_learngene.data.images import Images, Preprocessing, checked_image_sets
from ray_learngene.engine import DistillationObjective, Objective
from ray_learngene.errors import UserError
from ray_learngene.losses import DistillationLoss
from ray_learngene.manifest import Kind, Manifest
from ray_learngene.methods import Method, create_method
from ray_learngene.specs import preset
from ray_learngene.store import Store


@dataclass
class DistillTask:
    """Distillation of an auxiliary model."""

    config: DistillConfig
    images: Images
    module: nn.Module
    method: Method
    ancestry: Ancestry
    labels: tuple[str, ...]
    facts: dict[str, Any]
    kind: Kind = field(default="learngene", init=False)

    def objective(self, device: torch.device, autocast: torch.dtype | None) -> Objective:
        loss = DistillationLoss(self.config.distillation, self.config.alpha, self.config.tau)
        return DistillationObjective(
            self.ancestry.to(device),
            loss,
            smoothing=self.config.smoothing,
            labels=self.config.labels,
            autocast=autocast,
        )

    def judge(self, device: torch.device) -> nn.Module | None:
        return None if self.config.labels else self.ancestry.to(device)

    def identity(self) -> dict[str, Any]:
        return self.facts

    def write(self, module: nn.Module, folder: Path) -> dict[str, Any]:
        learngene = self.method.extract(module)
        learngene = learngene.describe(
            labels=self.labels, preprocessing=self.images.preprocessing.model_dump(mode="json")
        )
        learngene.save(folder)
        return json.loads(json.dumps(learngene.description())) | {"ancestry": self.config.ancestry}


def distill(config: DistillConfig) -> Manifest:
    """Distil an ancestry model into a learngene and publish it in the store.

    Raises:
        UserError: see the message; nothing has been trained then.
    """
    method = create_method(config.method)
    changes = {name: value for name, value in (("depth", config.depth), ("image", config.image_size)) if value}
    preset(config.preset, **changes)
    check_early(config, "learngene")
    store = Store(config.store)
    ancestry = load_ancestry(config.ancestry, store)
    sets = checked_image_sets(config)
    labels = sets.train.classes if config.labels else ancestry.labels
    if not config.labels:
        print("no labels: top-1 is the agreement with the ancestry model's decisions", flush=True)
    if config.labels:
        _check_classes(config, ancestry, sets.train.classes)
    spec = preset(config.preset, **changes, classes=ancestry.classes)
    torch.manual_seed(config.seed)
    module = method.auxiliary(spec, drop_path=config.drop_path)
    layers = getattr(module, "spec", spec).depth
    if layers != spec.depth and config.depth:
        raise UserError(
            f"--depth {config.depth} and --method {config.method} ({layers} layers) disagree: leave one out"
        )
    preprocessing = Preprocessing(
        image_size=spec.image,
        mean=ancestry.mean,
        std=ancestry.std,
        crop_pct=config.crop_pct,
        interpolation=config.interpolation,
    )
    images = Images(sets.train, sets.val, preprocessing, config, config.loader_workers)
    facts = {"data_sha256": sets.train.fingerprint, "ancestry_sha256": ancestry.sha256()}
    return run(DistillTask(config, images, module, method, ancestry, labels, facts))


def _check_classes(config: DistillConfig, ancestry: Ancestry, classes: tuple[str, ...]) -> None:
    if ancestry.classes != len(classes):
        raise UserError(
            f"--ancestry {config.ancestry} has {ancestry.classes} classes, --data {config.data} has {len(classes)}: "
            "fine-tune it on this data first (learngene ancestry --pretrained), or leave the labels out (--no-labels)"
        )
    if ancestry.labels and ancestry.labels != classes:
        first = next(
            index for index, pair in enumerate(zip(ancestry.labels, classes, strict=True)) if pair[0] != pair[1]
        )
        raise UserError(
            f"--ancestry {config.ancestry} calls class {first} {ancestry.labels[first]!r}, --data {config.data} calls "
            f"it {classes[first]!r}: they were not labelled alike; use the same label set, or --no-labels"
        )

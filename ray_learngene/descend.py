"""One descendant: expand, tune, measure, publish. A plain single process; knows nothing of Ray."""

from __future__ import annotations

import json
import re
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray_learngene.torchvision_cpu  # noqa: F401  isort:skip  (before the first timm import)
import torch
from jinja2 import Environment, PackageLoader, StrictUndefined
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from ray_learngene import termination
from ray_learngene.ancestry import Ancestry
from ray_learngene.arms import Arm
from ray_learngene.background_checkpoints import BackgroundCheckpoints
from ray_learngene.candidates import LEARNGENE_COLUMNS, StoredLearngene
from ray_learngene.checkpoints import StoreCheckpoints
from ray_learngene.config import AugmentationConfig, DistillationConfig, OptimizationConfig, SweepConfig
from ray_learngene.data.images import Images
from ray_learngene.engine import (
    DistillationObjective,
    LabelObjective,
    Objective,
    TorchEngine,
    create_optimizer,
    resolve_device,
    resolve_precision,
)
from ray_learngene.export import export_timm
from ray_learngene.fitting import Fit, fit
from ray_learngene.flops import TRAINING_PASSES, forward_flops
from ray_learngene.losses import DistillationLoss
from ray_learngene.out_of_memory import within_memory
from ray_learngene.progress import Progress
from ray_learngene.provenance import fingerprint, provenance
from ray_learngene.soft_labels.answers import Answers
from ray_learngene.specs import Spec, set_drop_path, timm_arguments
from ray_learngene.store import Store
from ray_learngene.training import Worker, train

# Settings of a sweep that decide what one descendant becomes; the others choose which, where and how it runs.
DECISIVE = {*OptimizationConfig.model_fields, *AugmentationConfig.model_fields, "holdout", "validate_on", "val_share"}
DECISIVE -= {"lr", "seed", "compile"}
_TAUGHT = set(DistillationConfig.model_fields)  # decisive too where an ancestry model teaches


def decisive_settings(config: SweepConfig, ancestry: Ancestry | None) -> dict[str, Any]:
    """The settings that decide what descendants become, as JSON values."""
    settings = config.model_dump(mode="json", include=DECISIVE | (_TAUGHT if ancestry else set()))
    return settings | ({"ancestry": ancestry.sha256()} if ancestry else {})


@dataclass(frozen=True)
class Descendant:
    """What one trial trains, and its name in the store, which ends in a hash of everything that decides the result."""

    arm: str
    spec: Spec
    seed: int
    lr: float
    key: str

    @property
    def group(self) -> str:
        """What the trials of a learning-rate search have in common."""
        slug = re.sub(r"[^a-zA-Z0-9._-]+", ".", self.arm).strip(".")
        return f"{slug}-w{self.spec.width}-d{self.spec.depth:02d}-s{self.seed}"

    @property
    def name(self) -> str:
        return f"{self.group}-{self.key}"


def descendant(
    arm: str,
    spec: Spec,
    seed: int,
    lr: float,
    config: SweepConfig,
    images: Images,
    stored: StoredLearngene | None,
    ancestry: Ancestry | None = None,
) -> Descendant:
    """The descendant of an arm and a spec under a sweep's settings."""
    method = Arm.parse(arm, config.learngene).method
    facts = {
        "arm": {"method": method.name, **method.model_dump(mode="json")},
        "learngene": stored.manifest.version if stored else None,
        "spec": spec.model_dump(),
        "seed": seed,
        "lr": lr,
        "data": images.train.fingerprint,
        "preprocessing": images.preprocessing.model_dump(mode="json"),
        "settings": decisive_settings(config, ancestry),
    }
    return Descendant(arm, spec, seed, lr, fingerprint(facts)[:8])


def train_descendant(
    one: Descendant,
    stored: StoredLearngene | None,
    images: Images,
    config: SweepConfig,
    costs: dict[str, Any],
    ancestry: Ancestry | None = None,
    report: Callable[[dict[str, Any]], None] = lambda metrics: None,
) -> dict[str, Any]:
    """Train one descendant from where its last checkpoint left it, and publish it.

    Args:
        stored: The learngene it is expanded from; None where its method needs none.
        costs: Its parameters, MACs, memory and measured latency.
        ancestry: Its teacher; None where it learns from labels alone.
        report: Called with the metrics of every epoch, the untuned model's first; or with a `message` for the user.

    Returns:
        Its row of the results table.

    Raises:
        Interrupted: SIGTERM came; a checkpoint holds what is done.
        RunError: training cannot go on.
    """
    store = Store(config.store, config.store_patience)
    name = f"{config.name}/{one.name}"
    checkpoints = StoreCheckpoints(store, name)
    if store.exists("descendant", name):  # published, and then the process died; the name says that it is the same
        checkpoints.remove()
        return store.manifest("descendant", name).metadata["row"]
    began = time.monotonic()
    settings = config.model_copy(update={"seed": one.seed, "lr": one.lr})
    trained = within_memory(
        lambda fitting: _train(one, stored, images, fitting, ancestry, report, checkpoints),
        settings,
        tell=lambda text: report({"message": text}),
    )
    model, ema, progress, fitted = trained.model, trained.ema, trained.progress, trained.fitted
    history = progress.history
    row = {
        "descendant": one.name,
        "sweep": config.name,
        "status": "finished",
        "error": None,
        "arm": one.arm,
        **{name: value for name, value in one.spec.model_dump().items() if name != "mlp_ratio"},
        "seed": one.seed,
        "lr": one.lr,
        "epochs": config.epochs,
        **costs,
        "top1_untuned": history[0]["top1"],
        "top1_epoch1": next((entry["top1"] for entry in history if entry["epoch"] >= 1), history[0]["top1"]),
        "top1": history[-1]["top1"],
        "ema_top1": history[-1].get("ema_top1"),
        "val_loss": history[-1]["val_loss"],
        "accumulation": trained.accumulation,
        "unreadable": len(progress.unreadable) if images.unreadable == "skip" else None,
        "steps": progress.step,
        "images": progress.step * config.batch_size,
        "seconds": round(progress.seconds, 3),
        "flops": 2 * TRAINING_PASSES * costs["macs"] * progress.step * config.batch_size,
        "teacher_flops": (progress.step * config.batch_size - progress.answers_read) * _teacher_flops(ancestry, images),
        **fitted.columns(),
        "overhead_seconds": 0.0,
        **(stored.facts() if stored else dict.fromkeys(LEARNGENE_COLUMNS)),
    }
    metadata = {
        "row": row,
        "history": history,
        "config": settings.model_dump(mode="json"),
        **({"unreadable": progress.unreadable} if progress.unreadable else {}),
        "labels": list(images.train.classes),
        **provenance(),
    }
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        arguments = timm_arguments(one.spec)
        export_timm(
            model, folder, labels=images.train.classes, preprocessing=images.preprocessing, model_args=arguments
        )
        if ema is not None:
            export_timm(
                ema,
                folder / "ema",
                labels=images.train.classes,
                preprocessing=images.preprocessing,
                model_args=arguments,
            )
        row["overhead_seconds"] = round(time.monotonic() - began - (progress.seconds - progress.resumed_seconds), 3)
        (folder / "metrics.json").write_text(json.dumps(metadata, indent=2) + "\n")
        (folder / "README.md").write_text(model_card(row, config))
        store.publish("descendant", name, folder, metadata)
    checkpoints.remove()
    return row


@dataclass
class _Trained:
    model: VisionTransformer
    ema: nn.Module | None
    progress: Progress
    fitted: Fit
    accumulation: int


def _train(
    one: Descendant,
    stored: StoredLearngene | None,
    images: Images,
    settings: SweepConfig,
    ancestry: Ancestry | None,
    report: Callable[[dict[str, Any]], None],
    uploads: StoreCheckpoints,
) -> _Trained:
    """Train a descendant from its last checkpoint on, or from its expansion."""
    device = resolve_device()
    autocast = resolve_precision(settings.precision, device)
    model, fitted = _initialise(one, stored, images, settings, device, autocast)
    set_drop_path(model, settings.drop_path)
    model.to(device)
    if settings.compile:
        model.compile()
    objective: Objective = LabelObjective(settings.smoothing)
    answers = None
    if ancestry is not None:
        if settings.soft_labels:
            answers = Answers.create(settings, settings, images, ancestry, uploads.store, device, autocast)
        teacher = None if answers else ancestry.to(device)
        loss = DistillationLoss(settings.distillation, settings.alpha, settings.tau)
        objective = DistillationObjective(teacher, loss, smoothing=settings.smoothing, autocast=autocast)
    optimizer = create_optimizer(model, settings)
    engine = TorchEngine(
        model, optimizer, accumulation=settings.accumulation, clip_grad=settings.clip_grad, autocast=autocast
    )
    with termination.graceful(), BackgroundCheckpoints(uploads) as checkpoints:
        progress, ema = train(
            engine,
            optimizer,
            objective,
            images,
            settings,
            worker=Worker(device),
            checkpoints=checkpoints,
            checkpoint_due=lambda step, steps_per_epoch, seconds: seconds >= settings.checkpoint_seconds,
            report=report,
            stop=termination.requested,
            answers=answers,
            autocast=autocast,
            evaluate_first=True,
        )
    return _Trained(model, ema, progress, fitted, settings.accumulation)


def _initialise(
    one: Descendant,
    stored: StoredLearngene | None,
    images: Images,
    settings: SweepConfig,
    device: torch.device,
    autocast: torch.dtype | None,
) -> tuple[VisionTransformer, Fit]:
    """The untuned descendant, fitted to its size where the method does so."""
    method = Arm.parse(one.arm, settings.learngene).method
    learngene = stored.learngene if stored else None
    if learngene and learngene.labels != images.train.classes:
        learngene = learngene.without_head()
    adapter = method.adapter(learngene, one.spec, seed=one.seed)
    if adapter is None or not adapter.fit_steps:
        return method.expand(learngene, one.spec, seed=one.seed), Fit()
    return fit(adapter, images, settings, device=device, autocast=autocast, smoothing=settings.smoothing)


def _teacher_flops(ancestry: Ancestry | None, images: Images) -> int:
    """FLOPs of asking about one image."""
    return forward_flops(ancestry, images.preprocessing.image_size) if ancestry else 0


def model_card(row: dict[str, Any], config: SweepConfig) -> str:
    """README.md of a descendant: what it is, how to load it, how good it is, where it comes from."""
    environment = Environment(loader=PackageLoader("ray_learngene"), undefined=StrictUndefined, trim_blocks=True)
    return environment.get_template("model_card.md").render(row=row, config=config)

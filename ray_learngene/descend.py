"""One descendant: expand, tune, measure, publish. A coroutine in a plain process; knows nothing of Ray."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray_learngene.torchvision_cpu  # noqa: F401  isort:skip  (before the first timm import)
from jinja2 import Environment, PackageLoader, StrictUndefined
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from ray_learngene.ancestry import Ancestry
from ray_learngene.arms import Arm
from ray_learngene.background_checkpoints import BackgroundCheckpoints
from ray_learngene.candidates import LEARNGENE_COLUMNS, StoredLearngene
from ray_learngene.checkpoints import StoreCheckpoints
from ray_learngene.compiled_blocks import compile_layers
from ray_learngene.config import AugmentationConfig, DistillationConfig, OptimizationConfig, SweepConfig
from ray_learngene.data.images import Images
from ray_learngene.device import resolve_device
from ray_learngene.engine import TorchEngine, resolve_precision
from ray_learngene.export import export_timm
from ray_learngene.fitting import Fit, fitting
from ray_learngene.flops import TRAINING_PASSES, forward_flops
from ray_learngene.losses import DistillationLoss
from ray_learngene.objectives import DistillationObjective, LabelObjective, Objective
from ray_learngene.optimizers import create_optimizer
from ray_learngene.progress import Progress
from ray_learngene.provenance import fingerprint, provenance
from ray_learngene.soft_labels.answers import Answers, LiveAnswers
from ray_learngene.specs import Spec, build, set_drop_path, timm_arguments
from ray_learngene.store import Store
from ray_learngene.stream import Coroutine, Stream
from ray_learngene.training import Training
from ray_learngene.worker import Worker

# Settings of a sweep that decide what one descendant becomes; the others choose which, where and how it runs.
DECISIVE = {*OptimizationConfig.model_fields, *AugmentationConfig.model_fields, "holdout", "validate_on", "val_share"}
DECISIVE -= {"lr", "seed", "compile"}
_TAUGHT = set(DistillationConfig.model_fields)  # decisive too where an ancestry model teaches


def decisive_settings(config: SweepConfig, ancestry: Ancestry | None) -> dict[str, Any]:
    """The settings that decide what descendants become, as JSON values."""
    settings = config.model_dump(mode="json", include=DECISIVE | (_TAUGHT if ancestry else set()))
    if ancestry:
        settings["ancestry"] = ancestry.sha256()
        if ancestry.scale is not None:  # an earlier version gave it the images as they were
            settings["normalised_anew"] = True
    return settings


@dataclass(frozen=True)
class Descendant:
    """What one trial trains, and its name in the store, which ends in a hash of everything that decides the result."""

    arm: str
    spec: Spec
    seed: int
    lr: float
    key: str

    @property
    def name(self) -> str:
        slug = re.sub(r"[^a-zA-Z0-9._-]+", ".", self.arm).strip(".")
        return f"{slug}-w{self.spec.width}-d{self.spec.depth:02d}-s{self.seed}-{self.key}"


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


Report = Callable[[dict[str, Any]], None]


@dataclass(frozen=True, eq=False)
class Tuning:
    """One descendant that is to be trained, and what only it needs.

    Attributes:
        stored: The learngene it is expanded from; None where its method needs none.
        costs: Its parameters, MACs, memory and measured latency.
        report: Called with the metrics of every epoch, the untuned model's first; or with a `message` for the user.
    """

    one: Descendant
    stored: StoredLearngene | None
    costs: dict[str, Any]
    report: Report = lambda metrics: None

    def settings(self, config: SweepConfig) -> SweepConfig:
        """The sweep's settings with this descendant's seed and learning rate."""
        return config.model_copy(update={"seed": self.one.seed, "lr": self.one.lr})


def descendant_stream(images: Images, settings: SweepConfig, ancestry: Ancestry | None) -> Stream:
    """The views of descendants with these settings, and their teacher's answers."""
    device = resolve_device()
    answers: Answers | LiveAnswers | None = None
    if ancestry is not None:
        autocast = resolve_precision(settings.precision, device)
        if settings.soft_labels:
            store = Store(settings.store, settings.store_patience)
            answers = Answers.create(settings, settings, images, ancestry, store, device, autocast)
        else:
            answers = LiveAnswers(ancestry, device, autocast, compiled=settings.compile)
    return Stream(images, settings, Worker(device), answers)


class Upbringing:
    """One descendant from its expansion, or its last checkpoint, to its publication.

    Args:
        ancestry: Its teacher; None where it learns from labels alone.
        checkpoint_seconds: At most one checkpoint is written in this time.
        clock: Seconds that it has cost so far.
    """

    def __init__(
        self,
        tuning: Tuning,
        images: Images,
        settings: SweepConfig,
        ancestry: Ancestry | None,
        checkpoint_seconds: float,
        clock: Callable[[], float],
    ) -> None:
        self.tuning, self.images, self.settings, self.ancestry = tuning, images, settings, ancestry
        self.checkpoint_seconds, self.clock = checkpoint_seconds, clock
        self.store = Store(settings.store, settings.store_patience)
        self.name = f"{settings.name}/{tuning.one.name}"
        self.device = resolve_device()
        self.autocast = resolve_precision(settings.precision, self.device)

    def run(self) -> Coroutine[dict[str, Any]]:
        """As a coroutine that asks for its batches, of a `descendant_stream`; returns the row of the results table.

        Raises:
            Interrupted: it was told to stop; a checkpoint holds what is done.
            RunError: training cannot go on.
        """
        uploads = StoreCheckpoints(self.store, self.name, {"lr": self.tuning.one.lr})
        if self.store.exists("descendant", self.name):  # and then the process died; the name says that it is the same
            uploads.remove()
            return self.store.manifest("descendant", self.name).metadata["row"]
        fitted = None
        if uploads.exists():
            model = build(self.tuning.one.spec)  # its weights are the checkpoint's
        else:
            model, fitted = yield from self._initialised()
        with BackgroundCheckpoints(uploads) as checkpoints:
            training = self._training(model, checkpoints)
            if fitted:
                training.progress.fit = vars(fitted)
            progress, ema = yield from training.run()
        row = self._row(progress)
        self._publish(row, model, ema, progress)
        uploads.remove()
        return row

    def _initialised(self) -> Coroutine[tuple[VisionTransformer, Fit]]:
        """The untuned descendant, fitted to its size where the method does so."""
        one, settings = self.tuning.one, self.settings
        method = Arm.parse(one.arm, settings.learngene).method
        learngene = self.tuning.stored.learngene if self.tuning.stored else None
        if learngene and learngene.labels != self.images.train.classes:
            learngene = learngene.without_head()
        adapter = method.adapter(learngene, one.spec, seed=one.seed)
        if adapter is None or not adapter.fit_steps:
            return method.expand(learngene, one.spec, seed=one.seed), Fit()
        fit = fitting(
            adapter,
            self.images,
            settings,
            device=self.device,
            autocast=self.autocast,
            smoothing=settings.smoothing,
            clock=self.clock,
        )
        return (yield from fit)

    def _training(self, model: VisionTransformer, checkpoints: BackgroundCheckpoints) -> Training:
        settings = self.settings
        set_drop_path(model, settings.drop_path)
        model.to(self.device)
        if settings.compile:
            compile_layers(model)
        objective: Objective = LabelObjective(settings.smoothing)
        if self.ancestry is not None:
            loss = DistillationLoss(settings.distillation, settings.alpha, settings.tau)
            objective = DistillationObjective(None, loss, smoothing=settings.smoothing, autocast=self.autocast)
        optimizer = create_optimizer(model, settings)
        engine = TorchEngine(
            model, optimizer, accumulation=settings.accumulation, clip_grad=settings.clip_grad, autocast=self.autocast
        )
        return Training(
            engine,
            optimizer,
            objective,
            self.images,
            settings,
            worker=Worker(self.device),
            checkpoints=checkpoints,
            checkpoint_due=lambda step, steps_per_epoch, seconds: seconds >= self.checkpoint_seconds,
            report=self.tuning.report,
            autocast=self.autocast,
            evaluate_first=True,
            clock=self.clock,
        )

    def _row(self, progress: Progress) -> dict[str, Any]:
        """All columns, of which `overhead_seconds` is filled in when everything is written."""
        one, costs, settings, history = self.tuning.one, self.tuning.costs, self.settings, progress.history
        seen = progress.step * settings.batch_size
        asked = forward_flops(self.ancestry, self.images.preprocessing.image_size) if self.ancestry else 0
        return {
            "descendant": one.name,
            "sweep": settings.name,
            "status": "finished",
            "error": None,
            "arm": one.arm,
            **{name: value for name, value in one.spec.model_dump().items() if name != "mlp_ratio"},
            "seed": one.seed,
            "lr": one.lr,
            "epochs": settings.epochs,
            **costs,
            "top1_untuned": history[0]["top1"],
            "top1_epoch1": next((entry["top1"] for entry in history if entry["epoch"] >= 1), history[0]["top1"]),
            "top1": history[-1]["top1"],
            "ema_top1": history[-1].get("ema_top1"),
            "val_loss": history[-1]["val_loss"],
            "accumulation": settings.accumulation,
            "unreadable": len(progress.unreadable) if self.images.unreadable == "skip" else None,
            "steps": progress.step,
            "images": seen,
            "seconds": round(progress.seconds, 3),
            "flops": 2 * TRAINING_PASSES * costs["macs"] * seen,
            "teacher_flops": (seen - progress.answers_read) * asked,
            **Fit(**progress.fit).columns(),  # type: ignore[arg-type]
            "overhead_seconds": 0.0,
            **(self.tuning.stored.facts() if self.tuning.stored else dict.fromkeys(LEARNGENE_COLUMNS)),
        }

    def _publish(
        self, row: dict[str, Any], model: VisionTransformer, ema: nn.Module | None, progress: Progress
    ) -> None:
        labels, preprocessing = self.images.train.classes, self.images.preprocessing
        metadata = {
            "row": row,
            "history": progress.history,
            "config": self.settings.model_dump(mode="json"),
            **({"unreadable": progress.unreadable} if progress.unreadable else {}),
            "labels": list(labels),
            **provenance(),
        }
        arguments = timm_arguments(self.tuning.one.spec)
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            export_timm(model, folder, labels=labels, preprocessing=preprocessing, model_args=arguments)
            if ema is not None:
                export_timm(ema, folder / "ema", labels=labels, preprocessing=preprocessing, model_args=arguments)
            row["overhead_seconds"] = round(self.clock() - (progress.seconds - progress.resumed_seconds), 3)
            (folder / "metrics.json").write_text(json.dumps(metadata, indent=2) + "\n")
            (folder / "README.md").write_text(model_card(row, self.settings))
            self.store.publish("descendant", self.name, folder, metadata)


def model_card(row: dict[str, Any], config: SweepConfig) -> str:
    """README.md of a descendant: what it is, how to load it, how good it is, where it comes from."""
    environment = Environment(loader=PackageLoader("ray_learngene"), undefined=StrictUndefined, trim_blocks=True)
    return environment.get_template("model_card.md").render(row=row, config=config)

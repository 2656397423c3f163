"""One descendant: expand, tune, measure, publish. Knows nothing of Ray."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from ray_learngene.ancestry.answers import Answers, LiveAnswers
from ray_learngene.ancestry.origin import stored_origin
from ray_learngene.config import SweepConfig
from ray_learngene.io.scratch import scratch_folder
from ray_learngene.methods.base import Adapter
from ray_learngene.models.blocks import set_drop_path
from ray_learngene.models.build import build, timm_arguments
from ray_learngene.models.device import resolve_device
from ray_learngene.models.origin import Origin, data_name
from ray_learngene.models.sizes import size_columns
from ray_learngene.models.timm_folder import export_timm
from ray_learngene.provenance import provenance, publishable
from ray_learngene.store.checkpoints import StoreCheckpoints
from ray_learngene.store.index import labels_key
from ray_learngene.store.learngenes import LEARNGENE_COLUMNS, StoredLearngene, in_order_of
from ray_learngene.store.store import NameTaken
from ray_learngene.sweeps.descendant import Descendant, SweepContext
from ray_learngene.sweeps.exports import CARD, METRICS, descendant_card, write_exports
from ray_learngene.training.batches import Batches
from ray_learngene.training.checkpoints import BackgroundCheckpoints, Progress
from ray_learngene.training.clock import Clock
from ray_learngene.training.engine import TorchEngine, prepare_layers, resolve_precision
from ray_learngene.training.fitting import Fit, Fitting
from ray_learngene.training.flops import TRAINING_PASSES, forward_flops
from ray_learngene.training.objectives import DistillationLoss, DistillationObjective, LabelObjective, Objective
from ray_learngene.training.optimizers import create_optimizer
from ray_learngene.training.trainer import Trainer
from ray_learngene.training.world import World

log = logging.getLogger(__name__)


Report = Callable[[dict[str, Any]], None]


@dataclass(frozen=True, eq=False)
class DescendantTask:
    """One descendant to train, with what only it needs.

    Attributes:
        stored: The learngene it is expanded from; None where its method needs none.
        costs: Its parameters, MACs, memory and measured latency.
        report: Called with the metrics of every epoch, the untuned model's first.
    """

    one: Descendant
    stored: StoredLearngene | None
    costs: dict[str, Any]
    report: Report = lambda metrics: None

    def settings(self, config: SweepConfig) -> SweepConfig:
        """Return the sweep's settings with this descendant's seed and learning rate."""
        own = {"seed": self.one.seed, "lr": self.one.lr}
        return config.model_copy(update=own if self.one.epochs is None else {**own, "epochs": self.one.epochs})


def descendant_batches(shared: SweepContext, settings: SweepConfig, *, taught: bool) -> Batches:
    """Return the views of descendants with these settings; `taught`: with their teacher's logits where there is one."""
    device, ancestry = resolve_device(), shared.ancestry
    answers: Answers | LiveAnswers | None = None
    if taught and ancestry is not None:
        autocast = resolve_precision(settings.precision, device)
        if settings.soft_labels:
            answers = Answers(settings, settings, shared.images, ancestry, shared.store, device, autocast)
        else:
            answers = LiveAnswers(ancestry, device, autocast, compiled=settings.compile)
    return Batches(shared.images, settings, World(device), answers)


class DescendantRun:
    """One descendant from its expansion, or its last checkpoint, to its publication.

    Args:
        checkpoint_seconds: At most one checkpoint is written in this time.
        clock: Counts the seconds that it costs.

    Attributes:
        row: Its row of the results table, if an earlier process published it.
        fitting: The first phase of methods that fit an adapter to the size.
    """

    def __init__(
        self,
        task: DescendantTask,
        shared: SweepContext,
        settings: SweepConfig,
        checkpoint_seconds: float,
        clock: Clock,
    ) -> None:
        self.task, self.settings = task, settings
        self.images, self.ancestry, self.store = shared.images, shared.ancestry, shared.store
        self.checkpoint_seconds, self.clock = checkpoint_seconds, clock
        self.row: dict[str, Any] | None = None
        self.fitting: Fitting | None = None
        self.name = f"{settings.name}/{task.one.name}"
        self.autocast = resolve_precision(settings.precision, clock.device)
        self.uploads = StoreCheckpoints(self.store, self.name, {"lr": task.one.lr})
        self.checkpoints = BackgroundCheckpoints(self.uploads)
        sources = [stored_origin(task.stored.manifest, self.store)] if task.stored else []
        sources += [self.ancestry.origin] if self.ancestry else []
        self.origin = Origin.join(
            sources, data=data_name(settings.data), data_license=self.images.license, stated=settings.license
        )

    def expand(self) -> None:
        """Build the untuned descendant, or the adapter to fit to its size; do nothing if it is published."""
        one = self.task.one
        if self.store.exists("descendant", self.name):  # the process died then; the name says that it is the same
            self.uploads.remove()
            self.row = self.store.manifest("descendant", self.name).metadata["row"]
            return
        if self.uploads.exists():
            self.model = build(one.spec)  # its weights are the checkpoint's
            return
        method = one.arm.method
        stored, classes = self.task.stored, self.images.train.classes
        learngene = (in_order_of(stored.learngene, classes) or stored.learngene.without_head()) if stored else None
        adapter = method.adapter(learngene, one.spec, seed=one.seed)
        if adapter is None or not adapter.fit_steps:
            self.model = method.expand(learngene, one.spec, seed=one.seed)
        else:
            self.fitting = self.fitting_of(adapter)

    def fitting_of(self, adapter: Adapter) -> Fitting:
        """Return the phase that fits an adapter to the size."""
        return Fitting(
            adapter,
            self.images,
            self.settings,
            clock=self.clock,
            autocast=self.autocast,
            smoothing=self.settings.smoothing,
            report=self.task.report,
        )

    def open_trainer(self) -> None:
        """Prepare tuning: move the model to its device and load its last checkpoint."""
        if self.fitting is not None:
            self.model, fit = self.fitting.result()
        settings, model = self.settings, self.model
        set_drop_path(model, settings.drop_path)
        model.to(self.clock.device)
        prepare_layers(model, settings)
        objective: Objective = LabelObjective(settings.smoothing)
        if self.ancestry is not None:
            loss = DistillationLoss(settings.distillation, settings.alpha, settings.tau)
            objective = DistillationObjective(None, loss, smoothing=settings.smoothing, autocast=self.autocast)
        optimizer = create_optimizer(model, settings)
        engine = TorchEngine(
            model, optimizer, accumulation=settings.accumulation, clip_grad=settings.clip_grad, autocast=self.autocast
        )
        self.trainer = Trainer(
            engine,
            optimizer,
            objective,
            self.images,
            settings,
            world=World(self.clock.device),
            checkpoints=self.checkpoints,
            checkpoint_due=lambda step, steps_per_epoch, seconds: seconds >= self.checkpoint_seconds,
            report=self.task.report,
            autocast=self.autocast,
            evaluate_first=True,
            clock=self.clock,
        )
        if self.fitting is not None:
            self.trainer.progress.fit = vars(fit)
            self.fitting = None  # the adapter and its moments are no longer needed

    def publish(self) -> dict[str, Any]:
        """Publish the trained descendant, remove its checkpoint, and return its row of the results table."""
        row = self._publish(self._row(self.trainer.progress, self.trainer.load_published()), self.trainer)
        self.uploads.remove()
        return row

    def release(self) -> None:
        """Free the memory of training, when this one has ended: others of its pack may train for long."""
        if trainer := vars(self).pop("trainer", None):
            trainer.release()
        vars(self).pop("model", None)
        self.fitting = None

    def _row(self, progress: Progress, final: dict[str, Any]) -> dict[str, Any]:
        """Return all columns; `overhead_seconds` is filled in later.

        Args:
            final: Entry of the history of the weights that are published.
        """
        one, costs, settings, history = self.task.one, self.task.costs, self.settings, progress.history
        seen = progress.step * settings.batch_size
        asked = forward_flops(self.ancestry, self.images.preprocessing.image_size) if self.ancestry else 0
        return {
            "descendant": one.name,
            "sweep": settings.name,
            "status": "finished",
            "error": None,
            "arm": one.arm.text,
            **size_columns(one.spec),
            "seed": one.seed,
            "lr": one.lr,
            "epochs": settings.epochs,
            "scratch": None if self.task.stored else settings.scratch or "epochs",
            **costs,
            "outside": one.arm.method.outside(self.task.stored.learngene if self.task.stored else None, one.spec),
            "data": publishable(settings.data),
            "labels": labels_key(self.images.train.classes),
            "validation": self.images.val.fingerprint[:12],
            "top1_untuned": history[0]["top1"],
            "top1_epoch1": next((entry["top1"] for entry in history if entry["epoch"] >= 1), history[0]["top1"]),
            "top1": final["top1"],
            "ema_top1": final.get("ema_top1"),
            "val_loss": final["val_loss"],
            "published_epoch": final["epoch"],
            "accumulation": settings.accumulation,
            "unreadable": len(progress.unreadable) if self.images.unreadable == "skip" else None,
            "steps": progress.step,
            "images": seen,
            **progress.costs(),
            "flops": 2 * TRAINING_PASSES * costs["macs"] * seen,
            "teacher_flops": (seen - progress.answers_read) * asked,
            **Fit(**progress.fit).columns(),  # type: ignore[arg-type]
            "overhead_seconds": 0.0,
            "exports": None,
            **(self.task.stored.facts() if self.task.stored else dict.fromkeys(LEARNGENE_COLUMNS)),
        }

    def _publish(self, row: dict[str, Any], trainer: Trainer) -> dict[str, Any]:
        """Publish the descendant; return its row, or the row of another run that was faster."""
        progress = trainer.progress
        labels, preprocessing = self.images.train.classes, self.images.preprocessing
        metadata = {
            "row": row,
            "history": progress.history,
            "config": publishable(self.settings.model_dump(mode="json")),
            **({"unreadable": progress.unreadable} if progress.unreadable else {}),
            "labels": list(labels),
            "origin": self.origin.model_dump(mode="json"),
            **provenance(),
        }
        export = partial(
            export_timm,
            labels=labels,
            preprocessing=preprocessing,
            model_args=timm_arguments(self.task.one.spec),
            tag=self.task.one.name,
            origin=self.origin,
        )
        with scratch_folder() as folder:
            export(self.model, folder)
            if trainer.ema is not None:
                export(trainer.ema.module, folder / "ema")
            exports = self.settings.export
            row["exports"] = write_exports(folder, self.task.one.name, exports, self.settings, self.images) or None
            row["overhead_seconds"] = round(self.clock() - (progress.seconds - progress.resumed_seconds), 3)
            (folder / METRICS).write_text(json.dumps(metadata, indent=2) + "\n")
            (folder / CARD).write_text(descendant_card(row, self.origin, metadata["config"]))
            with suppress(NameTaken):
                self.store.publish("descendant", self.name, folder, metadata)
                return row
        # The name says everything that decides the result, so the other one is the same.
        log.info(f"{self.name} was published meanwhile by another run of this sweep: it counts")
        published: dict[str, Any] = self.store.manifest("descendant", self.name).metadata["row"]
        return published

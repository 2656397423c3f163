"""What a run of `distill` or `ancestry` trains and publishes, and its name in the store."""

from __future__ import annotations

import json
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from ray_learngene.ancestry.origin import log_license_kept
from ray_learngene.config import AncestryConfig, DistillConfig
from ray_learngene.config.training import PublishConfig
from ray_learngene.data.pipeline import ImagePipeline
from ray_learngene.errors import UserError
from ray_learngene.io.scratch import scratch_folder
from ray_learngene.models.compile import require_compiler
from ray_learngene.models.origin import Origin
from ray_learngene.provenance import fingerprint, provenance, publishable
from ray_learngene.store import manifest
from ray_learngene.store.checkpoints import StoreCheckpoints
from ray_learngene.store.manifest import Kind, Manifest
from ray_learngene.store.store import NameTaken, Store
from ray_learngene.training.batches import Answers
from ray_learngene.training.deepspeed_engine import read_user_config
from ray_learngene.training.evaluation import SCORES, Scorer
from ray_learngene.training.objectives import Objective
from ray_learngene.training.optimizers import traits_of
from ray_learngene.training.trainer import Trainer, TrainingEngine
from ray_learngene.training.world import World

log = logging.getLogger(__name__)


@dataclass
class Task(ABC):
    """What is trained and published; sent to every worker.

    Attributes:
        facts: What decides the result besides the settings, such as hashes of the inputs.
    """

    kind: ClassVar[Kind]

    config: AncestryConfig | DistillConfig
    store: Store
    images: ImagePipeline
    module: nn.Module
    facts: dict[str, Any]
    origin: Origin

    @abstractmethod
    def objective(self, device: torch.device, autocast: torch.dtype | None) -> Objective:
        """Return what computes the loss."""

    def answers(self, device: torch.device, autocast: torch.dtype | None) -> Answers | None:
        """Return what adds the teacher's logits to every batch; None if the objective needs none."""
        return None

    @abstractmethod
    def scorer(self, device: torch.device, autocast: torch.dtype | None) -> Scorer:
        """Return what scores the module on the validation split."""

    def trainer(
        self,
        engine: TrainingEngine,
        optimizer: torch.optim.Optimizer,
        config: AncestryConfig | DistillConfig,
        world: World,
        autocast: torch.dtype | None,
        **options: Any,
    ) -> Trainer:
        """Return the trainer of the module in an engine; `options` are those of `Trainer`."""
        return Trainer(
            engine,
            optimizer,
            self.objective(world.device, autocast),
            self.images,
            config,
            world=world,
            scorer=self.scorer(world.device, autocast),
            autocast=autocast,
            **{"checkpoint_due": checkpoint_due(config.checkpoint_every), **options},
        )

    @abstractmethod
    def flops(self, steps: int) -> dict[str, int]:
        """Count the FLOPs of optimizer steps: `flops` of the trained model, `teacher_flops` of the teacher."""

    @abstractmethod
    def write(self, module: nn.Module, folder: Path) -> dict[str, Any]:
        """Write the artefact's files; returns its metadata."""

    def card(self, metadata: dict[str, Any]) -> str | None:
        """Return the artefact's README.md; None for one that only this package reads."""
        return None


def open_store(config: AncestryConfig | DistillConfig, kind: Kind) -> Store:
    """Open the store, after the checks that need neither images nor weights.

    Raises:
        UserError: an impossible name, a bad DeepSpeed file or optimizer, or settings that exclude each other.
    """
    manifest.run_name(kind, config.name)
    user_deepspeed = read_user_config(config.deepspeed) if config.deepspeed else {}
    if not traits_of(config).elementwise and (config.zero or "zero_optimization" in user_deepspeed):
        raise UserError(
            f"--opt {config.opt}: its step needs whole parameters, ZeRO splits them: use --zero 0 and no ZeRO settings "
            "in --deepspeed, or choose another optimizer"
        )
    if config.ema and config.zero == 3:
        raise UserError("--ema keeps whole weights, ZeRO-3 splits them: use --zero 2, or --ema 0")
    if config.publish == "best" and config.zero == 3:
        raise UserError("--publish best keeps whole weights, ZeRO-3 splits them: use --zero 2, or --publish last")
    if config.compile and config.zero == 3:
        raise UserError("--compile needs whole weights, ZeRO-3 splits them: use --zero 2, or leave --compile out")
    if config.compile and not config.most_workers:  # else it is a matter of the workers' hosts
        require_compiler()
    store = Store.of(config)
    store.check(write=True)
    return store


def made_before(store: Store, kind: Kind, config: PublishConfig, settings: dict[str, Any]) -> Manifest | None:
    """Return the artefact of the configuration's name if it is in the store, made with the same settings.

    Raises:
        UserError: it was made with other settings.
    """
    if config.overwrite or not store.exists(kind, config.name):
        return None
    made = store.manifest(kind, config.name)
    if made.metadata["fingerprint"] != fingerprint(settings):
        raise UserError(
            f"the {kind} {config.name!r} is already in {store.uri}, made with other settings: choose another --name, "
            "or --overwrite to replace it"
        )
    log.info(f"{kind} {config.name} is already in {store.uri}, made with these settings: nothing to do")
    log_license_kept(made, config.license)
    return made


def run_name(task: Task) -> str:
    """Return the run's folder below `runs` and the name of its checkpoints."""
    return manifest.run_name(task.kind, task.config.name)


def own_checkpoints(task: Task) -> StoreCheckpoints:
    """Return the checkpoints of a process without Ray; Ray's workers resume from them if they have none."""
    return StoreCheckpoints(task.store, f"{run_name(task)}/state")


def claim_run(task: Task, settings: dict[str, Any]) -> None:
    """Store the run's settings under its name; `--overwrite` removes an earlier run first."""
    if task.config.overwrite:
        task.store.remove_tree(f"runs/{run_name(task)}")
        own_checkpoints(task).remove()
    task.store.create_text(settings_path(task.kind, task.config.name), settings_text(settings))


def settings_path(kind: Kind, name: str) -> str:
    """Return where the settings of a run are."""
    return f"runs/{manifest.run_name(kind, name)}/settings.json"


def settings_text(settings: dict[str, Any]) -> str:
    """Return the settings of a run as they are stored."""
    return json.dumps(publishable(settings), indent=2, sort_keys=True, default=str)


def publish(
    task: Task,
    settings: dict[str, Any],
    flops: dict[str, int],
    trainer: Trainer,
) -> None:
    """Write and publish the artefact of a finished training."""
    progress = trainer.progress
    final = trainer.load_published()
    with scratch_folder() as folder:
        metadata = task.write(trainer.engine.module, folder)
        if trainer.ema is not None:
            task.write(trainer.ema.module, folder / "ema")
        seen = progress.step * task.config.batch_size
        asked = seen - progress.answers_read
        metadata |= {
            "fingerprint": fingerprint(settings),
            "config": publishable(task.config.model_dump(mode="json")),
            **task.facts,
            "metrics": {name: final[name] for name in SCORES if name in final},
            "history": progress.history,
            **({"published_epoch": final["epoch"]} if trainer.best else {}),
            "accumulation": trainer.config.accumulation,  # more than the task's where memory did not suffice
            **({"unreadable": progress.unreadable} if task.images.unreadable == "skip" else {}),
            "cost": {
                "steps": progress.step,
                "images": seen,
                **progress.costs(),
                **flops,
                "teacher_flops": flops["teacher_flops"] * asked // max(1, seen),
            },
            "origin": task.origin.model_dump(mode="json"),
            **provenance(),
        }
        if (card := task.card(metadata)) is not None:
            (folder / "README.md").write_text(card)
        store, name, overwrite = task.store, task.config.name, task.config.overwrite
        try:
            store.publish(task.kind, name, folder, metadata, overwrite=overwrite)
        except NameTaken:
            # By this run, where a worker died between publishing and returning, or by another with the same settings.
            if store.manifest(task.kind, name).metadata.get("fingerprint") != metadata["fingerprint"]:
                raise


def log_continuation(trainer: Trainer) -> None:
    """Log the step at which an interrupted run continues."""
    if trainer.step:
        log.info(f"continuing from step {trainer.step} of {trainer.total_steps}")


def checkpoint_due(every: int) -> Callable[[int, int, float], bool]:
    return lambda step, steps_per_epoch, seconds: step % (every or steps_per_epoch) == 0

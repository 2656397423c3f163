"""Run `distill` or `ancestry`: resume an interrupted run of the same name, train, publish.

A task says what is trained and published. It trains in this process or, by `ray_train`, on Ray.
"""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from ray_learngene import sigterm
from ray_learngene.config import AncestryConfig, DistillConfig
from ray_learngene.config.decides import RUN, decisive, require_same
from ray_learngene.data.pipeline import images_text
from ray_learngene.data.reader import unreadable_text
from ray_learngene.distillation.task import (
    Task,
    claim_run,
    log_continuation,
    made_before,
    own_checkpoints,
    publish,
    run_name,
    settings_path,
    settings_text,
)
from ray_learngene.distillation.tracked import TrackedRun
from ray_learngene.errors import UserError
from ray_learngene.models.checkpointing import checkpoint_gradients
from ray_learngene.models.device import gpu_allowed, resolve_device
from ray_learngene.progress import counted, scores_text
from ray_learngene.provenance import publishable
from ray_learngene.store.manifest import Manifest
from ray_learngene.tracking.trackers import Trackers
from ray_learngene.training.batches import Batches
from ray_learngene.training.checkpoints import BackgroundCheckpoints
from ray_learngene.training.deepspeed_engine import read_user_config
from ray_learngene.training.engine import TorchEngine, prepare_layers, resolve_precision
from ray_learngene.training.lockstep import train
from ray_learngene.training.optimizers import create_optimizer
from ray_learngene.training.out_of_memory import within_memory
from ray_learngene.training.world import World

if TYPE_CHECKING:
    from ray.train import UserCallback

log = logging.getLogger(__name__)


def run(task: Task, callbacks: Sequence[UserCallback] = (), trackers: Trackers | None = None) -> Manifest:
    """Train a task and publish its artefact; continue where an interrupted run of the same name stopped.

    Args:
        callbacks: Ray Train's (`ray.train.UserCallback`), which run in its controller.
        trackers: Follow the run; default: those of its settings.

    Raises:
        UserError: the name is taken by an artefact or a run with other settings.
    """
    config = task.config
    if callbacks and config.workers == 0:
        raise UserError("callbacks are Ray Train's: give workers=1 or more")
    user_deepspeed = read_user_config(config.deepspeed) if config.deepspeed else {}
    task.images.training_batches(config, world_size=max(1, config.most_workers))  # refuses too small a batch
    create_optimizer(task.module, config)  # refuses layer decay of shared layers
    if config.grad_checkpointing:
        checkpoint_gradients(copy.deepcopy(task.module))  # refuses a model without blocks
    store = task.store
    settings = _settings(task, user_deepspeed)
    done = made_before(store, task.kind, config, settings)
    if done is not None:
        return done
    _check_run(task, settings)
    with trackers or Trackers(config.track) as trackers, TrackedRun(trackers, task) as tracked:
        _log_beginning(task)
        # counted before training, which puts hooks and compiled code into the module
        flops = task.flops(config.epochs * (len(task.images.train) // config.batch_size))
        if config.workers == 0:
            with gpu_allowed(config.use_gpu):
                _train_here(task, settings, flops, tracked)
        else:
            from ray_learngene.distillation.ray_train import train_with_ray_train

            train_with_ray_train(task, settings, flops, user_deepspeed, callbacks, tracked)
        manifest = store.manifest(task.kind, config.name)
        tracked.finish(manifest)
    log.info(
        f"published {task.kind} {config.name} in {store.uri}: {manifest.metadata['parameters']:,} parameters, "
        + scores_text(manifest.metadata["metrics"])
    )
    if manifest.metadata.get("unreadable"):
        log.warning(unreadable_text(manifest.metadata["unreadable"]))
    return manifest


def _log_beginning(task: Task) -> None:
    config, images = task.config, task.images
    steps = len(images.train) // config.batch_size
    if config.workers == 0:
        with gpu_allowed(config.use_gpu):
            device = resolve_device()
            precision = str(resolve_precision(config.precision, device) or torch.float32).removeprefix("torch.")
        where = f"in this process on {device.type}, {precision}"
        if unused := [f"--{name}" for name in ("deepspeed", "zero") if getattr(config, name)]:
            log.info(f"without effect: {', '.join(unused)} (one process trains without DeepSpeed; --workers 1 has it)")
    else:
        least = f"{config.least_workers} to " if config.least_workers < config.most_workers else ""
        where = f"by Ray: workers {least}{config.most_workers}, CPUs of each {config.cpus_per_worker:g}"
    log.info(
        f"{task.kind} {config.name}: {images_text(images)}, {counted(config.epochs, 'epoch')} of "
        f"{counted(steps, 'step')} of {counted(config.batch_size, 'image')}, "
        f"{sum(each.numel() for each in task.module.parameters()):,} parameters to train, {where}"
    )


def _settings(task: Task, user_deepspeed: dict[str, Any]) -> dict[str, Any]:
    # the content of the DeepSpeed file decides, not its path
    return {**decisive(task.config, RUN), "deepspeed": user_deepspeed, **task.facts}


def _check_run(task: Task, settings: dict[str, Any]) -> None:
    """Refuse the name of a run with other settings; log that an interrupted run continues."""
    store = task.store
    if task.config.overwrite:
        return
    before = store.read_object(settings_path(task.kind, task.config.name), "--overwrite starts the run again")
    if before is None:
        return
    require_same(
        publishable(before),
        json.loads(settings_text(settings)),
        f"the run {task.config.name!r} in {store.uri}",
        ", or --overwrite to start it again",
    )
    log.info(f"continuing the run {task.config.name} in {store.uri}")


def _train_here(task: Task, settings: dict[str, Any], flops: dict[str, int], tracked: TrackedRun) -> None:
    """Train in this process, without Ray and DeepSpeed."""
    claim_run(task, settings)
    store = task.store
    if any("/checkpoint_" in path for path in store.objects.find(f"runs/{run_name(task)}")):
        raise UserError(
            f"the run {task.config.name!r} in {store.uri} has checkpoints of workers on Ray: go on with --workers 1 or "
            "more, or --overwrite to start again"
        )
    stored = own_checkpoints(task)
    device = resolve_device()

    def attempt(config: AncestryConfig | DistillConfig) -> None:
        autocast = resolve_precision(config.precision, device)
        module = copy.deepcopy(task.module).to(device)  # another attempt starts from what this one did
        prepare_layers(module, config)
        optimizer = create_optimizer(module, config)
        engine = TorchEngine(
            module, optimizer, accumulation=config.accumulation, clip_grad=config.clip_grad, autocast=autocast
        )
        with sigterm.graceful(), BackgroundCheckpoints(stored) as checkpoints:
            world = World(device)
            trainer = task.trainer(engine, optimizer, config, world, autocast, checkpoints=checkpoints, report=tracked)
            batches = Batches(task.images, config, world, task.answers(device, autocast))
            log_continuation(trainer)
            train([trainer], batches, stop=sigterm.requested)
        publish(task, settings, flops, trainer)

    within_memory(attempt, task.config, tell=log.info)
    stored.remove()

"""One run of `distill` or `ancestry`: continued under its name after an interruption, published at its end.

A task says what is trained and what is published; it trains in this process or, by `cluster_training`, on Ray.
"""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from ray_learngene import termination
from ray_learngene.background_checkpoints import BackgroundCheckpoints
from ray_learngene.checkpoints import StoreCheckpoints
from ray_learngene.compiled_blocks import compile_layers, require_compiler
from ray_learngene.config import AncestryConfig, DistillConfig, SpeedConfig, WorkersConfig
from ray_learngene.data.images import Images
from ray_learngene.deepspeed_engine import read_user_config
from ray_learngene.device import gpu_allowed, resolve_device
from ray_learngene.engine import TorchEngine, resolve_precision
from ray_learngene.errors import UserError
from ray_learngene.manifest import Kind, Manifest, folder_of
from ray_learngene.objectives import Objective
from ray_learngene.optimizers import create_optimizer
from ray_learngene.out_of_memory import within_memory
from ray_learngene.progress import Progress
from ray_learngene.provenance import fingerprint, provenance
from ray_learngene.store import Store
from ray_learngene.stream import Answers
from ray_learngene.terminal import ProgressPrinter, unreadable_text
from ray_learngene.training import Training, train
from ray_learngene.worker import Worker

# Settings that say where and how a run is executed, not what it computes.
# "deepspeed" is a path here; the file's content is added.
_OPERATIONAL = {
    "store",
    "store_patience",
    "overwrite",
    "check_images",
    "unreadable",
    "loader_workers",
    "cache_gb",
    "data_dir",
}
_OPERATIONAL |= {*SpeedConfig.model_fields, *WorkersConfig.model_fields} - {"zero"}


class Task(Protocol):
    """What is trained and published. It is sent to every worker."""

    kind: Kind
    images: Images
    module: nn.Module

    @property
    def config(self) -> AncestryConfig | DistillConfig: ...

    def objective(self, device: torch.device, autocast: torch.dtype | None) -> Objective: ...

    def answers(self, device: torch.device, autocast: torch.dtype | None) -> Answers | None:
        """What the objective is given with every batch; None where it needs no more."""
        ...

    def judge(self, device: torch.device, autocast: torch.dtype | None) -> nn.Module | None:
        """Model whose decisions stand in for labels in evaluation."""
        ...

    def flops(self, steps: int) -> dict[str, int]:
        """FLOPs of so many optimizer steps: `flops` of what is trained, `teacher_flops` of what is asked each time."""
        ...

    def identity(self) -> dict[str, Any]:
        """What besides the configuration decides the result, such as hashes of its inputs."""
        ...

    def write(self, module: nn.Module, folder: Path) -> dict[str, Any]:
        """Write the artefact's files; returns its metadata."""
        ...


def check_early(config: AncestryConfig | DistillConfig, kind: Kind) -> None:
    """What can be refused before images are read and weights are fetched.

    Raises:
        UserError: an impossible name, a bad DeepSpeed file, or settings that exclude each other.
    """
    folder_of(kind, config.name)
    if config.deepspeed:
        read_user_config(config.deepspeed)
    if config.ema and config.zero == 3:
        raise UserError("--ema keeps whole weights, ZeRO-3 splits them: use --zero 2, or --ema 0")
    if config.compile and config.zero == 3:
        raise UserError("--compile needs whole weights, ZeRO-3 splits them: use --zero 2, or leave --compile out")
    if config.compile and not config.most_workers:  # else it is a matter of the workers' hosts
        require_compiler()
    Store(config.store, config.store_patience).check(write=True)


def run(task: Task) -> Manifest:
    """Train a task and publish its artefact; continue where an interrupted run of the same name stopped.

    Raises:
        UserError: the name is taken by an artefact or a run with other settings.
    """
    config = task.config
    user_deepspeed = read_user_config(config.deepspeed) if config.deepspeed else {}
    task.images.training_batches(config, world_size=max(1, config.most_workers))  # refuses too small a batch
    store = Store(config.store, config.store_patience)
    settings = _settings(task, user_deepspeed)
    done = _finished(store, task, settings)
    if done is not None:
        return done
    _check_run(store, task, settings)
    # counted before training, which puts hooks and compiled code into the module
    flops = task.flops(config.epochs * (len(task.images.train) // config.batch_size))
    if config.workers == 0:
        with gpu_allowed(config.use_gpu):
            _train_here(task, store, settings, flops)
    else:
        from ray_learngene.cluster_training import train_on_cluster

        train_on_cluster(task, store, settings, flops, user_deepspeed)
    manifest = store.manifest(task.kind, config.name)
    print(
        f"published {task.kind} {config.name} in {store.uri}: {manifest.metadata['parameters']:,} parameters, "
        f"top-1 {manifest.metadata['metrics']['top1']:.2f} %",
        flush=True,
    )
    if manifest.metadata.get("unreadable"):
        print(unreadable_text(manifest.metadata["unreadable"]), flush=True)
    return manifest


def _settings(task: Task, user_deepspeed: dict[str, Any]) -> dict[str, Any]:
    decisive = {key: value for key, value in task.config.model_dump(mode="json").items() if key not in _OPERATIONAL}
    return {**decisive, "deepspeed": user_deepspeed, **task.identity()}


def _finished(store: Store, task: Task, settings: dict[str, Any]) -> Manifest | None:
    name = task.config.name
    if task.config.overwrite or not store.exists(task.kind, name):
        return None
    manifest = store.manifest(task.kind, name)
    if manifest.metadata["fingerprint"] != fingerprint(settings):
        raise UserError(
            f"the {task.kind} {name!r} is already in {store.uri}, made with other settings: "
            f"choose another --name, or --overwrite to replace it"
        )
    print(f"{task.kind} {name} is already in {store.uri}, made with these settings: nothing to do", flush=True)
    return manifest


def run_name(task: Task) -> str:
    """The run's folder below `runs` and the name of its checkpoints."""
    return f"{task.kind}-{task.config.name}"


def own_checkpoints(task: Task) -> StoreCheckpoints:
    """Where one plain process keeps its checkpoints; cluster workers go on from the newest if they have none."""
    store = Store(task.config.store, task.config.store_patience)
    return StoreCheckpoints(store, f"{run_name(task)}/state")


def _check_run(store: Store, task: Task, settings: dict[str, Any]) -> None:
    """Refuse a name under which something else was started; say so where it continues."""
    text = store.read_text(_settings_path(task))
    if text is None or task.config.overwrite:
        return
    before, now = json.loads(text), json.loads(_as_text(settings))
    changed = [key for key in sorted({*before, *now}) if before.get(key) != now.get(key)]
    if changed:
        key = changed[0]
        more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
        raise UserError(
            f"the run {task.config.name!r} in {store.uri} was started with {key} {before.get(key)!r}, "
            f"not {now.get(key)!r}{more}: choose another --name, or --overwrite to start it anew"
        )
    print(f"continuing the run {task.config.name} in {store.uri}", flush=True)


def claim_run(store: Store, task: Task, settings: dict[str, Any]) -> None:
    """Remember the run's settings under its name; `--overwrite` forgets what was there."""
    if task.config.overwrite:
        store.remove_tree(f"runs/{run_name(task)}")
        own_checkpoints(task).remove()
    store.create_text(_settings_path(task), _as_text(settings))


def _settings_path(task: Task) -> str:
    return f"runs/{run_name(task)}/settings.json"


def _as_text(settings: dict[str, Any]) -> str:
    return json.dumps(settings, indent=2, sort_keys=True, default=str)


def publish(
    task: Task,
    store: Store,
    settings: dict[str, Any],
    flops: dict[str, int],
    module: nn.Module,
    ema: nn.Module | None,
    progress: Progress,
    accumulation: int,
) -> None:
    """Write and publish the artefact.

    Args:
        accumulation: What was used; more than the configuration says where memory did not suffice.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        metadata = task.write(module, folder)
        if ema is not None:
            task.write(ema, folder / "ema")
        final = progress.history[-1]
        seen = progress.step * task.config.batch_size
        asked = seen - progress.answers_read
        metadata |= {
            "fingerprint": fingerprint(settings),
            "config": task.config.model_dump(mode="json"),
            "metrics": {name: final[name] for name in ("top1", "val_loss", "ema_top1") if name in final},
            "history": progress.history,
            "accumulation": accumulation,
            **({"unreadable": progress.unreadable} if task.images.unreadable == "skip" else {}),
            "cost": {
                "steps": progress.step,
                "images": seen,
                "seconds": round(progress.seconds, 3),
                **flops,
                "teacher_flops": flops["teacher_flops"] * asked // max(1, seen),
            },
            **provenance(),
        }
        name, overwrite = task.config.name, task.config.overwrite
        published = store.manifest(task.kind, name).metadata if store.exists(task.kind, name) else {}
        if overwrite or published.get("fingerprint") != metadata["fingerprint"]:
            # else a worker died between publishing and returning, and this is its successor
            store.publish(task.kind, name, folder, metadata, overwrite=overwrite)


def checkpoint_due(every: int) -> Callable[[int, int, float], bool]:
    return lambda step, steps_per_epoch, seconds: step % (every or steps_per_epoch) == 0


def _train_here(task: Task, store: Store, settings: dict[str, Any], flops: dict[str, int]) -> None:
    """One plain torch process, neither Ray nor DeepSpeed."""
    claim_run(store, task, settings)
    if any("/checkpoint_" in path for path in store.objects.find(f"runs/{run_name(task)}")):
        raise UserError(
            f"the run {task.config.name!r} in {store.uri} has checkpoints of workers on Ray: go on with --workers 1 or "
            "more, or --overwrite to start it anew"
        )
    stored = own_checkpoints(task)
    device = resolve_device()

    def attempt(config: AncestryConfig | DistillConfig) -> None:
        autocast = resolve_precision(config.precision, device)
        module = copy.deepcopy(task.module).to(device)  # another attempt starts from what this one did
        if config.compile:
            compile_layers(module)
        optimizer = create_optimizer(module, config)
        engine = TorchEngine(
            module, optimizer, accumulation=config.accumulation, clip_grad=config.clip_grad, autocast=autocast
        )
        with termination.graceful(), BackgroundCheckpoints(stored) as checkpoints:
            progress, ema = train(
                Training(
                    engine,
                    optimizer,
                    task.objective(device, autocast),
                    task.images,
                    config,
                    worker=Worker(device),
                    checkpoints=checkpoints,
                    checkpoint_due=checkpoint_due(config.checkpoint_every),
                    report=ProgressPrinter(),
                    judge=task.judge(device, autocast),
                    autocast=autocast,
                ),
                answers=task.answers(device, autocast),
                stop=termination.requested,
            )
        publish(task, store, settings, flops, module, ema, progress, config.accumulation)

    within_memory(attempt, task.config, tell=lambda text: print(text, flush=True))
    stored.remove()

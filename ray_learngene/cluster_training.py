"""Training on Ray Train and DeepSpeed, or in this process: what `distill` and `ancestry` have in common.

A task says what is trained and what is published; this file runs it, continues it after an interruption under the same
name, and publishes the artefact.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from ray_learngene.checkpoints import StoreCheckpoints
from ray_learngene.config import AncestryConfig, DistillConfig, WorkersConfig
from ray_learngene.data.images import Images
from ray_learngene.deepspeed_engine import DeepSpeedEngine, deepspeed_config, read_user_config
from ray_learngene.engine import Objective, TorchEngine, create_optimizer, resolve_device, resolve_precision
from ray_learngene.errors import RunError, UserError
from ray_learngene.manifest import Kind, Manifest, folder_of
from ray_learngene.provenance import fingerprint, provenance
from ray_learngene.store import Store
from ray_learngene.terminal import ProgressPrinter
from ray_learngene.training import Progress, Worker, train

# Settings that say where and how a run is executed, not what it computes.
# "deepspeed" is a path here; the file's content is added.
_OPERATIONAL = {
    "store",
    "store_patience",
    "overwrite",
    "check_images",
    "loader_workers",
    "data_dir",
    *WorkersConfig.model_fields,
} - {"zero"}


class Task(Protocol):
    """What is trained and published. It is sent to every worker."""

    kind: Kind
    images: Images
    module: nn.Module

    @property
    def config(self) -> AncestryConfig | DistillConfig: ...

    def objective(self, device: torch.device, autocast: torch.dtype | None) -> Objective: ...

    def judge(self, device: torch.device) -> nn.Module | None:
        """Model whose decisions stand in for labels in evaluation."""
        ...

    def flops(self, steps: int) -> dict[str, int]:
        """FLOPs of so many optimizer steps: `flops` of what is trained, `teacher_flops` of what only looks on."""
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
    Store(config.store, config.store_patience).check(write=True)


def run(task: Task) -> Manifest:
    """Train a task and publish its artefact; continue where an interrupted run of the same name stopped.

    Raises:
        UserError: the name is taken by an artefact or a run with other settings.
    """
    config = task.config
    user_deepspeed = read_user_config(config.deepspeed) if config.deepspeed else {}
    task.images.training_batches(config, world_size=max(1, config.workers))  # refuses what does not divide
    store = Store(config.store, config.store_patience)
    settings = _settings(task, user_deepspeed)
    done = _finished(store, task, settings)
    if done is not None:
        return done
    _check_run(store, task, settings)
    # counted before training, which puts hooks and compiled code into the module
    flops = task.flops(config.epochs * (len(task.images.train) // config.batch_size))
    if config.workers == 0:
        outcome = _train_here(task, store, settings, flops)
    else:
        outcome = _train_on_cluster(task, store, settings, flops, user_deepspeed)
    if "error" in outcome:
        raise UserError(outcome["error"])
    manifest = store.manifest(task.kind, config.name)
    print(
        f"published {task.kind} {config.name} in {store.uri}: {manifest.metadata['parameters']:,} parameters, "
        f"top-1 {manifest.metadata['metrics']['top1']:.2f} %",
        flush=True,
    )
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


def _claim_run(store: Store, task: Task, settings: dict[str, Any]) -> None:
    """Remember the run's settings under its name; `--overwrite` forgets what was there."""
    if task.config.overwrite:
        store.remove_tree(f"runs/{run_name(task)}")
        store.remove("checkpoint", f"{run_name(task)}/state")
    store.create_text(_settings_path(task), _as_text(settings))


def _settings_path(task: Task) -> str:
    return f"runs/{run_name(task)}/settings.json"


def _as_text(settings: dict[str, Any]) -> str:
    return json.dumps(settings, indent=2, sort_keys=True, default=str)


def _publish(
    task: Task,
    store: Store,
    settings: dict[str, Any],
    flops: dict[str, int],
    module: nn.Module,
    ema: nn.Module | None,
    progress: Progress,
) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        metadata = task.write(module, folder)
        if ema is not None:
            task.write(ema, folder / "ema")
        final = progress.history[-1]
        metadata |= {
            "fingerprint": fingerprint(settings),
            "config": task.config.model_dump(mode="json"),
            "metrics": {name: final[name] for name in ("top1", "val_loss", "ema_top1") if name in final},
            "history": progress.history,
            "cost": {
                "steps": progress.step,
                "images": progress.step * task.config.batch_size,
                "seconds": round(progress.seconds, 3),
                **flops,
            },
            **provenance(),
        }
        name, overwrite = task.config.name, task.config.overwrite
        published = store.manifest(task.kind, name).metadata if store.exists(task.kind, name) else {}
        if overwrite or published.get("fingerprint") != metadata["fingerprint"]:
            # else a worker died between publishing and returning, and this is its successor
            store.publish(task.kind, name, folder, metadata, overwrite=overwrite)


def _checkpoint_due(every: int) -> Callable[[int, int, float], bool]:
    return lambda step, steps_per_epoch, seconds: step % (every or steps_per_epoch) == 0


def _train_here(task: Task, store: Store, settings: dict[str, Any], flops: dict[str, int]) -> dict[str, Any]:
    """One plain torch process, neither Ray nor DeepSpeed."""
    config = task.config
    _claim_run(store, task, settings)
    device = resolve_device()
    autocast = resolve_precision(config.precision, device)
    module = task.module.to(device)
    if config.compile:
        module.compile()
    optimizer = create_optimizer(module, config)
    engine = TorchEngine(
        module, optimizer, accumulation=config.accumulation, clip_grad=config.clip_grad, autocast=autocast
    )
    checkpoints = StoreCheckpoints(store, f"{run_name(task)}/state")
    progress, ema = train(
        engine,
        optimizer,
        task.objective(device, autocast),
        task.images,
        config,
        worker=Worker(device),
        checkpoints=checkpoints,
        checkpoint_due=_checkpoint_due(config.checkpoint_every),
        report=ProgressPrinter(),
        judge=task.judge(device),
        autocast=autocast,
    )
    _publish(task, store, settings, flops, module, ema, progress)
    checkpoints.remove()
    return {}


def _train_on_cluster(
    task: Task, store: Store, settings: dict[str, Any], flops: dict[str, int], user_deepspeed: dict[str, Any]
) -> dict[str, Any]:
    import ray
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer
    from ray.train.v2.api.exceptions import TrainingFailedError

    from ray_learngene.cluster import cluster_has_gpus, progress_channel, ray_cluster, require_resources

    config = task.config
    with ray_cluster(config.address):
        use_gpu = cluster_has_gpus() if config.use_gpu is None else config.use_gpu
        require_resources(config.address, config.workers, config.cpus_per_worker, int(use_gpu), "workers")
        _claim_run(store, task, settings)
        storage_path, storage_filesystem = store.ray_storage(run_name(task))
        with progress_channel(ProgressPrinter()) as report:
            trainer = TorchTrainer(
                _worker,  # type: ignore[arg-type]
                train_loop_config={
                    "task": ray.put(task),
                    "settings": settings,
                    "flops": flops,
                    "deepspeed": user_deepspeed,
                    "report": report,
                },
                scaling_config=ScalingConfig(
                    num_workers=config.workers,
                    use_gpu=use_gpu,
                    resources_per_worker={"CPU": config.cpus_per_worker, **({"GPU": 1} if use_gpu else {})},
                ),
                run_config=RunConfig(
                    name=run_name(task),
                    storage_path=storage_path,
                    storage_filesystem=storage_filesystem,
                    failure_config=FailureConfig(max_failures=config.max_failures),
                    checkpoint_config=CheckpointConfig(num_to_keep=2),
                ),
            )
            try:
                result = trainer.fit()
            except TrainingFailedError as error:
                raise UserError(f"training failed after {config.max_failures} restarts: {_cause(error)}") from error
    return getattr(result, "return_value", None) or {}


def _cause(error: BaseException) -> str:
    """The last line of what a worker raised."""
    failures = getattr(error, "worker_failures", None) or {0: error}
    lines = str(next(iter(failures.values()))).strip().splitlines()
    return lines[-1] if lines else type(error).__name__


class RayCheckpoints:
    """Checkpoints of cluster workers: their files merge into one directory of the run, every worker calls `save`."""

    @contextmanager
    def latest(self) -> Iterator[Path | None]:
        import ray.train

        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            yield None
            return
        with checkpoint.as_directory() as folder:
            yield Path(folder)

    def save(self, write: Callable[[Path], None], metrics: dict[str, Any]) -> None:
        import ray.train

        folder = Path(tempfile.mkdtemp())
        try:
            write(folder)
            ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _worker(loop: dict[str, Any]) -> dict[str, Any]:
    """One training worker. What ends all workers at the same step is returned, not retried."""
    import ray
    import ray.train
    import ray.train.torch

    context = ray.train.get_context()
    task: Task = ray.get(loop["task"])
    config = task.config
    device = ray.train.torch.get_device()
    torch.set_num_threads(max(1, int(os.environ.get("OMP_NUM_THREADS", "1"))))
    autocast = resolve_precision(config.precision, device)
    module = task.module.to(device)
    if config.compile:
        module.compile()
    optimizer = create_optimizer(module, config)
    settings = deepspeed_config(
        config, world_size=context.get_world_size(), zero=config.zero, autocast=autocast, user=loop["deepspeed"]
    )
    engine = DeepSpeedEngine(module, optimizer, settings)
    try:
        progress, ema = train(
            engine,
            optimizer,
            task.objective(device, autocast),
            task.images,
            config,
            worker=Worker(device, context.get_world_rank(), context.get_world_size(), torch.distributed.all_reduce),
            checkpoints=RayCheckpoints(),
            checkpoint_due=_checkpoint_due(config.checkpoint_every),
            report=loop["report"],
            judge=task.judge(device),
            autocast=autocast,
            whole_evaluation=config.zero == 3,
        )
    except RunError as error:
        return {"error": str(error)}
    with engine.gathered():
        if context.get_world_rank() == 0:
            _publish(
                task,
                Store(config.store, config.store_patience),
                loop["settings"],
                loop["flops"],
                engine.module,
                ema,
                progress,
            )
    torch.distributed.barrier()
    return {}

"""Train on Ray Train and DeepSpeed; workers may fail, be preempted, run out of memory or become more."""

from __future__ import annotations

import copy
import logging
import shutil
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from ray_learngene.training.batches import Batches
from ray_learngene.training.lockstep import train

import ray_learngene.cluster.shared_tensors  # noqa: F401  isort:skip  (before the first Ray import)
import ray
import ray.train
import ray.train.torch
import torch
from ray.train import Checkpoint, CheckpointConfig, FailureConfig, RunConfig, ScalingConfig, UserCallback
from ray.train.torch import TorchTrainer
from ray.train.v2.api.exceptions import TrainingFailedError

from ray_learngene import sigterm
from ray_learngene.cluster import ray_internals
from ray_learngene.cluster.driver import from_workers
from ray_learngene.cluster.preemption import GracefulTorchConfig, StopPoll, stop_requests
from ray_learngene.cluster.session import ray_cluster, use_assigned, worker_gpus
from ray_learngene.config import AncestryConfig, DistillConfig
from ray_learngene.distillation.run_notes import NoteFailures, RunNotes
from ray_learngene.distillation.task import (
    Task,
    claim_run,
    log_continuation,
    own_checkpoints,
    publish,
    run_name,
)
from ray_learngene.errors import Interrupted, RunError, UserError, reason_of
from ray_learngene.store.checkpoints import StoreCheckpoints
from ray_learngene.training.checkpoints import written
from ray_learngene.training.deepspeed_engine import DeepSpeedEngine, deepspeed_config, zero_stage
from ray_learngene.training.engine import prepare_layers, resolve_precision
from ray_learngene.training.optimizers import create_optimizer, traits_of
from ray_learngene.training.out_of_memory import smaller_text, with_smaller_micro_batch
from ray_learngene.training.world import World

log = logging.getLogger(__name__)


def train_with_ray_train(
    task: Task,
    settings: dict[str, Any],
    flops: dict[str, int],
    user_deepspeed: dict[str, Any],
    callbacks: Sequence[UserCallback],
    report: Callable[[Mapping[str, Any]], None],
) -> None:
    """Train with Ray Train workers and publish.

    Ray Train restarts failed workers, `max_failures` times. This function restarts them after a preemption, or with
    smaller micro-batches if memory ran out.

    Args:
        report: Called with the metrics of the first worker.

    Raises:
        Interrupted: this process was asked to end.
        UserError: the cluster lacks the resources, or training cannot go on.
    """
    config, store = task.config, task.store
    with ray_cluster(config.address), sigterm.graceful():
        use_gpu = bool(worker_gpus(config, config.least_workers))
        claim_run(task, settings)
        RunNotes(store, run_name(task)).clear()
        loop = {"task": ray.put(task), "settings": settings, "flops": flops, "deepspeed": user_deepspeed}
        with from_workers(report) as driver, stop_requests() as requests:
            while True:
                outcome = _fit(task, {**loop, "driver": driver, "requests": requests}, use_gpu, callbacks)
                if outcome is None:
                    continue
                if "error" in outcome:
                    raise RunError(outcome["error"])
                if "interrupted" not in outcome:
                    own_checkpoints(task).remove()
                    return
                if sigterm.requested():
                    raise Interrupted(*outcome["interrupted"])
                step, total_steps = outcome["interrupted"]
                log.info(f"workers are taken away: moving on from step {step} of {total_steps}")


def _fit(task: Task, loop: dict[str, Any], use_gpu: bool, callbacks: Sequence[UserCallback]) -> dict[str, Any] | None:
    """Run the workers once and return their result; None if they must restart with smaller micro-batches."""
    config, store = task.config, task.store
    notes = RunNotes(store, run_name(task))
    halvings = notes.read().get("halvings", 0)
    storage_path, storage_filesystem = store.ray_storage(run_name(task))
    elastic = config.least_workers < config.most_workers
    trainer = _Trainer(
        _worker,  # type: ignore[arg-type]
        train_loop_config=loop,
        torch_config=GracefulTorchConfig(),
        scaling_config=ScalingConfig(
            num_workers=(config.least_workers, config.most_workers) if elastic else config.most_workers,  # type: ignore[arg-type]
            use_gpu=use_gpu,
            resources_per_worker={"CPU": config.cpus_per_worker, **({"GPU": 1} if use_gpu else {})},
            elastic_resize_monitor_interval_s=config.resize_seconds,  # type: ignore[call-arg]  # mypy sees Train V1
        ),
        run_config=RunConfig(
            name=run_name(task),
            storage_path=storage_path,
            storage_filesystem=storage_filesystem,
            failure_config=FailureConfig(max_failures=config.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
            callbacks=[NoteFailures(notes), *callbacks],  # type: ignore[list-item]
        ),
    )
    try:
        result = trainer.fit()
    except ray.exceptions.RayActorError as error:  # Ray Train's controller was killed, which leads the workers
        raise UserError(
            f"the process that leads the workers was lost: run the same command again to continue ({reason_of(error)})"
        ) from None
    except TrainingFailedError as error:
        noted = notes.read()
        if noted.get("halvings", 0) > halvings:
            return None
        raise UserError(
            noted.get("error") or f"training failed after {config.max_failures} restarts: {_cause(error)}"
        ) from error
    return getattr(result, "return_value", None) or {}


class _Trainer(TorchTrainer):
    """Ray's trainer with two private methods replaced: see tests/cluster/test_ray_internals.py."""

    def _create_default_callbacks(self) -> list[Any]:
        callbacks: list[Any] = super()._create_default_callbacks()  # type: ignore[misc]  # mypy sees Train V1
        return callbacks if ray_internals.has_dashboard() else ray_internals.without_cleaner(callbacks)

    def _register_sigint_handler(self, controller: Any) -> None:
        """Ctrl-C stays a request (`sigterm`): Ray's own handler would abort the workers, without a checkpoint."""


def _cause(error: TrainingFailedError) -> str:
    """Return the last line of the error that a worker raised."""
    failures = getattr(error, "worker_failures", None) or {0: error}
    return "".join(traceback.format_exception_only(next(iter(failures.values())))).strip().splitlines()[-1]


class RayCheckpoints:
    """Checkpoints of Ray Train workers: rank 0 writes them, and one upload runs while training goes on.

    All ranks call every method.

    Args:
        before: Checkpoints of a process without Ray that began the run; read until Ray has its own.
    """

    def __init__(self, before: StoreCheckpoints) -> None:
        self.before = before
        self.first = ray.train.get_context().get_world_rank() == 0
        self._idle = threading.Event()
        self._idle.set()

    @contextmanager
    def latest(self) -> Iterator[Path | None]:
        """Yield a folder with the newest checkpoint, or None."""
        checkpoint = ray.train.get_checkpoint()
        with self.before.latest() if checkpoint is None else checkpoint.as_directory() as folder:
            yield folder and Path(folder)

    def save(self, write: Callable[[Path], None], metrics: dict[str, Any]) -> None:
        """Write a checkpoint after the upload of the previous one; Ray ends the workers if its upload fails."""
        self._idle.wait()
        folder = written(write)
        if self.first:
            self._idle.clear()
        ray.train.report(
            metrics,
            checkpoint=Checkpoint.from_directory(folder) if self.first else None,
            checkpoint_upload_mode=ray.train.CheckpointUploadMode.ASYNC,
            checkpoint_upload_fn=self._upload,
            delete_local_checkpoint_after_upload=False,  # `_upload` does, whatever happens
        )

    def finish(self) -> None:
        """Wait for the upload."""
        self._idle.wait()

    def busy(self) -> bool:
        """Check whether the last checkpoint is still being uploaded."""
        return not self._idle.is_set()

    def _upload(self, checkpoint: Checkpoint, name: str) -> Checkpoint:
        try:
            return ray.train.get_context().get_storage().persist_current_checkpoint(checkpoint, name)
        finally:
            shutil.rmtree(checkpoint.path, ignore_errors=True)
            self._idle.set()


def _worker(loop: dict[str, Any]) -> dict[str, Any]:
    """Run one training worker; rank 0's messages reach the driver."""
    with loop["driver"].connected() if ray.train.get_context().get_world_rank() == 0 else nullcontext():
        return _train(loop)


def _train(loop: dict[str, Any]) -> dict[str, Any]:
    """Train on one rank. An error that ends all ranks at the same step is returned, so that Ray does not retry it."""
    use_assigned()
    context = ray.train.get_context()
    task: Task = ray.get(loop["task"])
    world_size = context.get_world_size()
    device = ray.train.torch.get_device()
    world = World(device, context.get_world_rank(), world_size, torch.distributed.all_reduce)
    try:
        config = _within_memory(task, world_size)
        autocast = resolve_precision(config.precision, device)
        module = copy.deepcopy(task.module).to(device)  # what Ray sent is shared with others on this host
        prepare_layers(module, config)
        optimizer = create_optimizer(module, config)
        stage = zero_stage(config.zero, optimizer, loop["deepspeed"], traits_of(config))
        engine = DeepSpeedEngine(
            module,
            optimizer,
            deepspeed_config(config, world_size=world_size, zero=stage, autocast=autocast, user=loop["deepspeed"]),
        )
        trainer = task.trainer(
            engine,
            optimizer,
            config,
            world,
            autocast,
            checkpoints=RayCheckpoints(own_checkpoints(task)),
            report=loop["driver"].report,
            whole_evaluation=stage == 3,
        )
        batches = Batches(
            task.images, config, world, task.answers(device, autocast), whole_evaluation=trainer.whole_evaluation
        )
        log_continuation(trainer)
        train([trainer], batches, stop=StopPoll(world, loop["requests"]))
    except RunError as error:
        return {"error": str(error)}
    except Interrupted as interrupted:
        return {"interrupted": (interrupted.done, interrupted.total)}
    with engine.gathered():
        if world.rank == 0:
            publish(task, loop["settings"], loop["flops"], trainer)
    torch.distributed.barrier()
    return {}


def _within_memory(task: Task, world_size: int) -> AncestryConfig | DistillConfig:
    """Apply the notes of earlier workers to the configuration.

    Raises:
        RunError: a restart would fail in the same way.
    """
    notes = RunNotes(task.store, run_name(task)).read()
    if "error" in notes:
        raise RunError(notes["error"])
    config = task.config
    for _ in range(notes.get("halvings", 0)):
        config = with_smaller_micro_batch(config, world_size)
    if config.accumulation > task.config.accumulation:
        log.info(smaller_text(config, world_size))
    return config

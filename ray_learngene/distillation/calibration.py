"""What a distillation will cost: a few of its steps, measured where its workers will train."""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import numpy as np

from ray_learngene.config import DistillConfig
from ray_learngene.delivery.latency import device_name
from ray_learngene.distillation.distill import prepare
from ray_learngene.distillation.distill_task import DistillTask
from ray_learngene.distillation.phases import phases
from ray_learngene.io.scratch import scratch_folder
from ray_learngene.methods.base import DESCRIPTION_FILE, WEIGHTS_FILE, Learngene
from ray_learngene.models.device import gpu_allowed, resolve_device
from ray_learngene.provenance import publishable
from ray_learngene.store.learngenes import StoredLearngene
from ray_learngene.store.manifest import FORMAT, Manifest
from ray_learngene.training.batches import Batches
from ray_learngene.training.clock import Clock, Seconds
from ray_learngene.training.engine import TorchEngine, prepare_layers, resolve_precision
from ray_learngene.training.optimizers import create_optimizer
from ray_learngene.training.pace import (
    MOST,
    DistillationCost,
    NoCheckpoints,
    marks,
    score_once,
    spread_over_training,
    step_seconds,
)
from ray_learngene.training.world import World

Measured = tuple[Seconds, Seconds, str, float]  # seconds of a step, seconds of scoring, device, load


def plan_distillation(
    config: DistillConfig, price_per_hour: float | None = None
) -> tuple[DistillationCost, StoredLearngene]:
    """Measure what a distillation will cost.

    Returns:
        The cost, and the learngene of the untrained auxiliary model, whose descendants cost what those of the trained
        one will.

    Raises:
        UserError: whatever the distillation would refuse, or the cluster lacks what its workers need.
    """
    first, *others = phases(config)
    planned = [_plan(first), *(_plan(phase.model_copy(update={"start": None})) for phase in others)]
    cost = DistillationCost(
        config.name,
        sum(one.seconds for one in planned),
        sum(one.device_seconds for one in planned),
        max(1, config.most_workers),
        planned[0].share,
        planned[0].device,
        planned[0].load,
        price_per_hour,
    )
    return cost, _untrained(planned)


@dataclass(frozen=True)
class _Planned:
    """One training, and what it will cost; as in `DistillationCost`."""

    task: DistillTask
    steps: int
    seconds: float
    device_seconds: float
    share: float
    device: str
    load: float

    def cost(self) -> dict[str, float]:
        images = self.steps * self.task.config.batch_size
        return {"steps": self.steps, "images": images, "seconds": self.seconds, **self.task.flops(self.steps)}


def _plan(config: DistillConfig) -> _Planned:
    task = prepare(config)
    if config.workers == 0:
        with gpu_allowed(config.use_gpu):
            found, share = [measure(task)], 1.0
    else:
        found, share = _measure_on_ray(task)
    steps = config.epochs * (len(task.images.train) // config.batch_size)
    step, score = np.array([one[0] for one in found]), np.array([one[1] for one in found])  # a row for every worker
    scorings = config.epochs + (config.publish == "best")
    seconds = float(steps * step[:, 0].max() + scorings * score[:, 0].max())
    of_devices = float((steps * step[:, 1] + scorings * score[:, 1]).sum())
    return _Planned(task, steps, seconds, of_devices, share, *found[0][2:])


def measure(task: DistillTask, rank: int = 0) -> Measured:
    """Take a few steps of one worker's share of every batch, without the exchange of gradients."""
    device = resolve_device()
    per_epoch = len(task.images.train) // task.config.batch_size
    config = task.config.model_copy(update={"epochs": math.ceil((MOST + 1) / per_epoch), "soft_labels": False})
    task = replace(task, config=config)
    clock, autocast = Clock(device), resolve_precision(config.precision, device)
    module = copy.deepcopy(task.module).to(device)
    prepare_layers(module, config)
    world = World(device, rank, max(1, config.most_workers))
    spread_over_training(module, max(1, int(world.micro_batch(config))), device)
    optimizer = create_optimizer(module, config)
    trainer = task.trainer(
        TorchEngine(module, optimizer, accumulation=config.accumulation, clip_grad=config.clip_grad, autocast=autocast),
        optimizer,
        config,
        world,
        autocast,
        checkpoints=NoCheckpoints(),
        checkpoint_due=lambda step, steps_per_epoch, seconds: False,
        report=lambda metrics: None,
        evaluate_first=True,
        clock=clock,
    )
    batches = Batches(task.images, config, world, None)
    score_once(trainer, batches)
    begin = clock.spent()
    found = marks(trainer, batches, clock)
    score = found[0] - begin
    return step_seconds(found, per_epoch, score), score, device_name(device), round(os.getloadavg()[0], 2)


def _measure_on_ray(task: DistillTask) -> tuple[list[Measured], float]:
    """Measure all workers at once, in tasks with their resources."""
    import ray_learngene.cluster.shared_tensors  # noqa: F401  isort:skip  (before the first Ray import)
    import ray

    from ray_learngene.cluster.session import ray_cluster, worker_gpus

    config = task.config
    with ray_cluster(config.address):
        gpus = worker_gpus(config, config.least_workers)
        remote = ray.remote(num_cpus=config.cpus_per_worker, num_gpus=gpus, max_retries=config.max_failures)(_in_worker)
        shared = ray.put(task)
        found = ray.get([remote.remote(shared, rank) for rank in range(config.most_workers)])
        return found, float(gpus or config.cpus_per_worker)


def _in_worker(task: DistillTask, rank: int) -> Measured:
    from ray_learngene.cluster.session import use_assigned

    use_assigned()
    return measure(task, rank)


def _untrained(planned: Sequence[_Planned]) -> StoredLearngene:
    """Return the learngene of the last untrained auxiliary model, with what all trainings will cost."""
    task, costs = planned[-1].task, [one.cost() for one in planned]
    with scratch_folder() as folder:
        facts = task.write(task.module, folder)
        files = [(folder / name).read_bytes() for name in (WEIGHTS_FILE, DESCRIPTION_FILE)]
    manifest = Manifest.model_construct(
        format=FORMAT,
        kind="learngene",
        name=task.config.name,
        version="planned",
        folder="",
        created=datetime.now(UTC).isoformat(),
        files=[],
        metadata={
            **facts,
            "config": publishable(task.config.model_dump(mode="json")),
            "cost": {name: sum(cost[name] for cost in costs) for name in costs[0]},
            "origin": task.origin.model_dump(mode="json"),
        },
    )
    return StoredLearngene(Learngene.from_bytes(*files), manifest)

"""What a sweep will cost: a few steps of every size, measured where its descendants will train."""

from __future__ import annotations

import heapq
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from ray_learngene.config import SweepConfig
from ray_learngene.delivery.latency import device_name
from ray_learngene.methods.base import Adapter
from ray_learngene.models.build import build
from ray_learngene.models.device import resolve_device
from ray_learngene.models.specs import Spec
from ray_learngene.sweeps.descendant_run import DescendantRun, DescendantTask, descendant_batches
from ray_learngene.sweeps.packing import Place
from ray_learngene.sweeps.trial import Trial
from ray_learngene.sweeps.trials import SweepInputs
from ray_learngene.training.clock import Clock, Seconds
from ray_learngene.training.pace import (
    LEAST,
    MOST,
    WARM_UP,
    DistillationCost,
    NoCheckpoints,
    marks,
    step_seconds,
)


@dataclass(frozen=True)
class Pace:
    """Seconds of a training, by the clock and of its device.

    Attributes:
        read: Reading one batch, with the teacher's forward pass. Siblings share it.
        step: The rest of one step.
        score: Scoring the validation split once.
        fit: The rest of one step of fitting an adapter to the size.
    """

    read: Seconds
    step: Seconds
    score: Seconds
    fit: Seconds | float = 0.0


@dataclass(frozen=True)
class DescendantCost:
    """What each of the descendants of an arm and a size will cost.

    Attributes:
        seconds: By the clock.
        device_seconds: CPU seconds of the process, or GPU seconds.
    """

    arm: str
    spec: Spec
    count: int
    seconds: float
    device_seconds: float


@dataclass(frozen=True)
class SweepCost:
    """What a sweep will cost.

    Attributes:
        places: Trainings at a time.
        share: Of a GPU, or CPUs, that a training takes.
        hours: From the first start to the last end.
        device: Where the steps were measured.
        load: Mean number of processes that wanted a CPU there, over the last minute.
        price_per_hour: Of one GPU, or of one CPU where there is no GPU.
        distillation: Of the learngene, if that is still to be distilled.
    """

    descendants: tuple[DescendantCost, ...]
    places: int
    share: float
    hours: float
    device: str
    load: float
    price_per_hour: float | None
    distillation: DistillationCost | None = None

    @property
    def device_hours(self) -> float:
        """GPU-hours of the descendants, or CPU-hours where there is no GPU."""
        return self.share * sum(one.count * one.seconds for one in self.descendants) / 3600

    @property
    def device_seconds(self) -> float:
        """CPU or GPU seconds of all descendants together."""
        return sum(one.count * one.device_seconds for one in self.descendants)

    @property
    def price(self) -> float | None:
        """Money, in the currency of `price_per_hour`."""
        return None if self.price_per_hour is None else self.device_hours * self.price_per_hour

    def as_json(self) -> dict[str, Any]:
        """Return what the store keeps of it, for the page of the sweep."""
        return {
            "descendants": [
                {"arm": one.arm, **one.spec.model_dump(), "count": one.count}
                | {name: round(getattr(one, name), 3) for name in ("seconds", "device_seconds")}
                for one in self.descendants
            ],
            **{name: getattr(self, name) for name in ("places", "share", "device", "load", "price_per_hour")},
            "hours": round(self.hours, 5),
            "device_hours": round(self.device_hours, 5),
            "price": self.price and round(self.price, 4),
            **({"distillation": asdict(self.distillation)} if self.distillation else {}),
        }


def calibrate(inputs: SweepInputs, wanted: Sequence[Trial], price_per_hour: float | None) -> SweepCost:
    """Measure one descendant of every arm and size where trials will run, and add up what all will cost.

    Raises:
        UserError: the cluster lacks what one trial needs.
    """
    one_each = list({(trial.arm, trial.spec): trial for trial in wanted}.values())
    if inputs.config.in_process:
        from ray_learngene.sweeps.capacity import own_place

        measured, place, gpus = measure(inputs, one_each), own_place(), float(resolve_device().type == "cuda")
    else:
        measured, place, gpus = _measure_on_ray(inputs, one_each)
    paces, device, load = measured
    return add_up(inputs, wanted, dict(zip(one_each, paces, strict=True)), place, gpus, device, load, price_per_hour)


def add_up(
    inputs: SweepInputs,
    wanted: Sequence[Trial],
    paces: dict[Trial, Pace],
    place: Place,
    gpus: float,
    device: str,
    load: float,
    price_per_hour: float | None,
) -> SweepCost:
    """Return the cost of all trials, packed as the sweep packs them."""
    config = inputs.config
    of_kind = {(trial.arm, trial.spec): pace for trial, pace in paces.items()}
    seconds: dict[Trial, Seconds] = {}
    ends = [0.0] * place.count
    tried = max(1, config.lr_search)
    for pack in inputs.packs(wanted, place):
        for trial in pack:
            seconds[trial] = seconds_of(inputs, trial, of_kind[trial.arm, trial.spec], len(pack))
        for _ in range(tried):
            heapq.heapreplace(ends, ends[0] + sum(float(seconds[trial][0]) for trial in pack))
    costs = []
    for arm, spec in of_kind:
        each = [seconds[trial] for trial in wanted if (trial.arm, trial.spec) == (arm, spec)]
        costs.append(DescendantCost(arm.text, spec, tried * len(each), *np.mean(each, axis=0).tolist()))
    share = gpus or config.cpus_per_trial
    return SweepCost(tuple(costs), place.count, share, max(ends) / 3600, device, load, price_per_hour)


def seconds_of(inputs: SweepInputs, trial: Trial, pace: Pace, siblings: int) -> Seconds:
    """Return the seconds of a trial that shares its images with siblings, itself included."""
    epochs = inputs.epochs(trial)
    steps = epochs * (len(inputs.images.train) // inputs.config.batch_size)
    adapter = _adapter(inputs, trial)
    adapter_steps = adapter.fit_steps if adapter else 0
    read = pace.read / siblings
    return (epochs + 1) * pace.score + steps * (pace.step + read) + adapter_steps * (pace.fit + read)


def _adapter(inputs: SweepInputs, trial: Trial) -> Adapter | None:
    """Return what a trial's method fits to the size."""
    stored = inputs.learngene(trial)
    return trial.arm.method.adapter(stored.learngene if stored else None, trial.spec, seed=trial.seed)


def measure(inputs: SweepInputs, trials: Sequence[Trial]) -> tuple[list[Pace], str, float]:
    """Measure trials one after another in this process; also say on which device and under which load."""
    known: dict[Spec, Pace] = {}
    paces = []
    for trial in trials:
        if trial.spec not in known:
            known[trial.spec] = _tuning_pace(inputs, trial)
        paces.append(replace(known[trial.spec], fit=_fitting_pace(inputs, trial, known[trial.spec].read)))
    return paces, device_name(resolve_device()), round(os.getloadavg()[0], 2)


def _measure_on_ray(inputs: SweepInputs, trials: Sequence[Trial]) -> tuple[tuple[list[Pace], str, float], Place, float]:
    import ray_learngene.cluster.shared_tensors  # noqa: F401  isort:skip  (before the first Ray import)
    import ray

    from ray_learngene.cluster.session import ray_cluster, trial_gpus
    from ray_learngene.sweeps.capacity import cluster_place

    config = inputs.config
    with ray_cluster(config.address):
        gpus = trial_gpus(config)
        task = ray.remote(num_cpus=config.cpus_per_trial, num_gpus=gpus, max_retries=config.max_failures)(_in_worker)
        measured = ray.get(task.remote(inputs, list(trials)))
        return measured, cluster_place(config.cpus_per_trial, gpus, config.max_concurrent), gpus


def _in_worker(inputs: SweepInputs, trials: Sequence[Trial]) -> tuple[list[Pace], str, float]:
    from ray_learngene.cluster.session import use_assigned

    use_assigned(inputs.config.cpus_per_trial)
    return measure(inputs, trials)


def _tuning_pace(inputs: SweepInputs, trial: Trial) -> Pace:
    clock, settings, run = _run(inputs, trial)
    run.model = build(trial.spec)  # its weights change no speed
    run.open_trainer()
    per_epoch = run.trainer.steps_per_epoch
    read = _read_pace(inputs, settings, clock)
    begin = clock.spent()
    found = marks(run.trainer, descendant_batches(inputs, settings, taught=True), clock)
    score = found[0] - begin
    return Pace(read, np.maximum(0.0, step_seconds(found, per_epoch, score) - read), score)


def _fitting_pace(inputs: SweepInputs, trial: Trial, read: Seconds) -> Seconds | float:
    adapter = _adapter(inputs, trial)
    if not adapter or not adapter.fit_steps:
        return 0.0
    clock, settings, run = _run(inputs, trial)
    fitting = run.fitting_of(adapter)
    found = marks(fitting, descendant_batches(inputs, settings, taught=False), clock)
    return np.maximum(0.0, step_seconds(found, fitting.total_steps + 1, 0.0) - read)


def _run(inputs: SweepInputs, trial: Trial) -> tuple[Clock, SweepConfig, DescendantRun]:
    """Return a training that writes nothing, of epochs enough to be measured."""
    clock = Clock(resolve_device())
    task = DescendantTask(inputs.descendant(trial), inputs.learngene(trial), {})
    per_epoch = max(1, len(inputs.images.train) // inputs.config.batch_size)
    settings = task.settings(inputs.config).model_copy(update={"epochs": math.ceil((MOST + 1) / per_epoch)})
    run = DescendantRun(task, inputs, settings, math.inf, clock)
    run.checkpoints = NoCheckpoints()  # type: ignore[assignment]
    return clock, settings, run


def _read_pace(inputs: SweepInputs, settings: SweepConfig, clock: Clock) -> Seconds:
    """Return the seconds of reading the batch of one step, as a training does."""
    batches = descendant_batches(inputs, settings, taught=True)
    found = []
    for step in range(WARM_UP + LEAST):
        found.append(clock.spent())
        with clock.running():
            for _ in batches.of_step(step):
                pass
    return np.asarray((clock.spent() - found[WARM_UP]) / LEAST)

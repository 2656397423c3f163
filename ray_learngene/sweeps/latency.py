"""Latency of descendants, measured on the hardware that trains them."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

import torch

from ray_learngene.config import SelectionConfig, SweepConfig
from ray_learngene.delivery.latency import REPEATABLE, Latency, measure_latency
from ray_learngene.errors import UserError, last_line
from ray_learngene.models.specs import Spec

log = logging.getLogger(__name__)

Meter = Callable[[Spec], Latency]


def measured_latency(config: SelectionConfig, measure: Meter | None = None) -> Meter:
    """Measure each spec once, by default on this process's device; warn of the first that is not repeatable."""
    warned = False

    @cache
    def known_latency(spec: Spec) -> Latency:
        nonlocal warned
        found = measure(spec) if measure else measure_here(config, spec)
        if found.spread > REPEATABLE and not warned:
            warned = True
            log.warning(
                f"latency of width {spec.width} depth {spec.layers} on {found.device} is not repeatable: rounds "
                f"differ {found.spread:.1f} times; other sizes are not named; measure on an idle machine"
            )
        return found

    return known_latency


def measure_here(config: SelectionConfig, spec: Spec) -> Latency:
    """Measure a spec on the device at hand."""
    return measure_latency(
        spec,
        batch=config.latency_batch,
        dtype=getattr(torch, config.latency_dtype),
        threads=config.latency_threads,
    )


@contextmanager
def latency_meter(config: SweepConfig) -> Iterator[Meter]:
    """Measure where descendants run: in this process, or in a task on the cluster with a trial's resources.

    The driver of a cluster may be a head without a GPU.
    """
    if config.in_process or not (config.address or os.environ.get("RAY_ADDRESS")):
        yield measured_latency(config)  # on this machine, where Ray would start its workers too
        return
    import ray_learngene.cluster.shared_tensors  # noqa: F401  isort:skip  (before the first Ray import)
    import ray

    from ray_learngene.cluster.session import ray_cluster, trial_gpus

    with ray_cluster(config.address):
        gpus = trial_gpus(config)
        task = ray.remote(num_cpus=config.cpus_per_trial, num_gpus=gpus, max_retries=config.max_failures)(_measure)

        def measure(spec: Spec) -> Latency:
            try:
                return ray.get(task.remote(config, spec))
            except ray.exceptions.RayError as error:
                raise UserError(f"latency cannot be measured on the cluster: {last_line(error)}") from error

        yield measured_latency(config, measure)


def _measure(config: SweepConfig, spec: Spec) -> Latency:
    from ray_learngene.cluster.session import use_assigned

    use_assigned(config.latency_threads)
    return measure_here(config, spec)

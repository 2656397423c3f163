"""Run the trials of a sweep on Ray Tune: one process for each pack of descendants, which share their images."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from typing import Any

import ray_learngene.cluster.shared_tensors  # noqa: F401  isort:skip  (before the first Ray import)
import torch
from ray import tune
from ray.util.queue import Queue

from ray_learngene import sigterm
from ray_learngene.cluster import ray_internals
from ray_learngene.cluster.driver import Driver, from_workers
from ray_learngene.cluster.preemption import CatchesSigterm, stop_requests, watching
from ray_learngene.cluster.session import ray_cluster, trial_gpus, use_assigned
from ray_learngene.errors import Diverged, Interrupted, RunError
from ray_learngene.sweeps import tune_callbacks
from ray_learngene.sweeps.capacity import cluster_place
from ray_learngene.sweeps.trial import Known, Trial
from ray_learngene.sweeps.trials import Outcomes, SweepInputs, log_packs
from ray_learngene.sweeps.tune_search import GroupedASHA, LearningRateSearch


def run_with_ray_tune(
    inputs: SweepInputs,
    left: Sequence[Trial],
    following: Sequence[Trial],
    known: Known,
    outcomes: Outcomes,
    on_start: Callable[[], None],
    callbacks: Sequence[tune.Callback],
) -> None:
    """Train the remaining trials and record their outcomes.

    Args:
        following: Trials after those, whose learning rates follow from the results of others.
        known: What earlier runs tried, where learning rates are searched.
        on_start: Called once the cluster has answered, before the first trial.

    Raises:
        Interrupted: this process was asked to end; what ran has written its checkpoints.
    """
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")  # Tune's own; histories are published
    os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "60")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # else Tune prints a banner although it is told to be quiet
    os.environ["TUNE_PRINT_ALL_TRIAL_ERRORS"] = "0"  # a trial that is started again has not failed; see `Outcomes`
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"  # Tune's would end what runs without a checkpoint
    ray_internals.keep_credentials_out_of_trials()
    config = inputs.config
    asked = threading.Event()
    progress = tune_callbacks.SweepProgress(outcomes, asked)
    with ray_cluster(config.address), sigterm.graceful():
        gpus = trial_gpus(config)
        on_start()
        packs = inputs.packs(left, cluster_place(config.cpus_per_trial, gpus, config.max_concurrent))
        log_packs(packs)
        search = LearningRateSearch(packs, following, known, config) if config.lr_search else None
        storage_path, storage_filesystem = inputs.store.ray_storage(f"sweep-{config.name}")
        resources = {"CPU": config.cpus_per_trial, "GPU": gpus}
        _train.__mixins__ = (CatchesSigterm,)  # type: ignore[attr-defined]  # how Tune extends a function's actor
        with from_workers(lambda told: outcomes.reported(*told)) as driver, stop_requests(asked) as requests:
            trained = tune.with_parameters(_train, inputs=inputs, driver=driver, requests=requests)
            tune.Tuner(
                tune.with_resources(trained, resources),
                param_space={} if search else {"one": tune.grid_search([{"pack": trials} for trials in packs])},
                tune_config=tune.TuneConfig(
                    num_samples=len(packs) + len(following) if search else 1,
                    metric="top1",
                    mode="max",
                    search_alg=search,
                    scheduler=GroupedASHA(inputs.epochs) if config.asha else None,
                    max_concurrent_trials=config.max_concurrent or None,
                    reuse_actors=True,
                    trial_dirname_creator=lambda trial: trial.trial_id,
                ),
                run_config=tune.RunConfig(
                    name=f"sweep-{config.name}",
                    storage_path=storage_path,
                    storage_filesystem=storage_filesystem,
                    failure_config=tune.FailureConfig(max_failures=config.max_failures),
                    callbacks=[progress, *callbacks],
                    stop=tune_callbacks.StopsWhenAsked(progress),
                    verbose=0,
                ),
            ).fit()
        if sigterm.requested() and outcomes.ended < outcomes.total:
            raise Interrupted(outcomes.ended, outcomes.total, "descendant")


def _train(one: dict[str, Any], inputs: SweepInputs, driver: Driver, requests: Queue) -> None:
    """Run one Tune trial, which trains a pack. Errors that a retry would not mend are reported, not raised."""
    config = inputs.config
    use_assigned(config.cpus_per_trial)
    if torch.cuda.is_available() and 0 < (config.gpus_per_trial or 0) < 1:
        torch.cuda.set_per_process_memory_fraction(config.gpus_per_trial or 1)  # Ray's shares are bookkeeping only
    one = one.get("one", one)
    trials: list[Trial] = one["pack"]
    left = [trial for member, trial in enumerate(trials) if member not in one.get("ended", ())]

    def report(trial: Trial, metrics: dict[str, Any]) -> None:
        if "top1" in metrics:  # Tune refuses a result without what it compares, such as one in mid-epoch
            tune.report({**metrics, "member": trials.index(trial)})
        else:
            driver.report((trial, metrics))

    def ended(trial: Trial, outcome: dict[str, Any] | RunError) -> None:
        if isinstance(outcome, RunError):
            diverged = isinstance(outcome, Diverged)
            report(trial, {"top1": float("-inf"), "error": str(outcome), "diverged": diverged})
        else:
            epochs = inputs.epochs(trial)
            report(trial, {**outcome, "epoch": epochs, "epochs": epochs, "finished": True})

    at_once = one.get("at_once") or max(1, len(left))
    try:
        with watching(requests), driver.connected():
            if sigterm.requested():  # else it would score the untuned models first
                raise Interrupted(0, 0)
            for first in range(0, len(left), at_once):
                inputs.train(left[first : first + at_once], report, ended)
    except Interrupted:
        if requests.empty():
            os._exit(sigterm.STATUS)  # Tune starts it elsewhere; it counts as a failure only if its node stays
        tune.report({"top1": float("-inf"), "interrupted": True})

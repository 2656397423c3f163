"""The trials of a sweep on Ray Tune: one plain single process for each descendant that is not finished yet."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ray_learngene import termination
from ray_learngene.ancestry import Ancestry
from ray_learngene.arms import Arm
from ray_learngene.candidates import StoredLearngene
from ray_learngene.checkpoints import StoreCheckpoints
from ray_learngene.config import SweepConfig
from ray_learngene.data.images import Images
from ray_learngene.descend import Descendant, descendant, train_descendant
from ray_learngene.errors import Interrupted, RunError
from ray_learngene.specs import Spec
from ray_learngene.store import Store
from ray_learngene.terminal import finished_text, print_message, trial_line


@dataclass(frozen=True)
class Trial:
    """What is trained, up to the learning rate."""

    arm: str
    spec: Spec
    seed: int


@dataclass(frozen=True)
class SweepInputs:
    """What all trials of a sweep have in common; broadcast to the cluster once.

    Attributes:
        learngenes: Of all arms, by name.
        ancestry: Teacher of the descendants; None where they learn from labels alone.
        costs: Columns of the results table by spec: parameters, MACs, memory, measured latency.
    """

    config: SweepConfig
    learngenes: dict[str, StoredLearngene]
    images: Images
    ancestry: Ancestry | None
    costs: dict[Spec, dict[str, Any]]

    def learngene(self, trial: Trial) -> StoredLearngene | None:
        """What a trial's descendant is expanded from."""
        name = Arm.parse(trial.arm, self.config.learngene).learngene_of(trial.spec, trial.seed)
        return self.learngenes[name] if name else None

    def descendant(self, trial: Trial, lr: float) -> Descendant:
        """The descendant that a trial trains at a learning rate."""
        return descendant(
            trial.arm, trial.spec, trial.seed, lr, self.config, self.images, self.learngene(trial), self.ancestry
        )

    def train(self, trial: Trial, lr: float, report: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
        """Train a trial's descendant; returns its row of the results table."""
        return train_descendant(
            self.descendant(trial, lr),
            self.learngene(trial),
            self.images,
            self.config,
            self.costs[trial.spec],
            self.ancestry,
            report,
        )


def run_trials(
    inputs: SweepInputs, wanted: Sequence[Trial], before: Sequence[dict[str, Any]], on_start: Callable[[], None]
) -> list[dict[str, Any]]:
    """Train what is wanted and not among the rows from before, on the cluster.

    Args:
        on_start: Called once the cluster has answered, before the first trial.

    Returns:
        A row for each trial that failed or was stopped early; those that finished are in the store.
    """
    config = inputs.config
    groups: list[dict[str, Any]] = [{"trial": trial, "group": inputs.descendant(trial, 0.0).group} for trial in wanted]
    known = _known(inputs, wanted, before) if config.lr_search else {}
    if config.lr_search:
        left = [group for turn in range(config.lr_search) for group in groups if turn >= len(known[group["group"]])]
    else:
        names = {row["descendant"] for row in before}
        left = [group for group in groups if inputs.descendant(group["trial"], config.lr).name not in names]
    total = len(wanted) * max(1, config.lr_search)
    done = f", {total - len(left)} already finished" if len(left) < total else ""
    print(f"sweep {config.name}: {len(left)} descendants to train{done}", flush=True)
    if left and not config.in_process:
        return _tune(inputs, left, known, on_start)
    on_start()
    return _train_here(inputs, left)


def _train_here(inputs: SweepInputs, left: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The trials one after another in this process; returns a row for each that failed."""
    failed = []
    for number, one in enumerate(left, start=1):
        trial, lr = one["trial"], inputs.config.lr
        try:
            text = finished_text(inputs.train(trial, lr, print_message))
        except RunError as error:
            text = f"failed: {error}"
            failed.append(_unfinished_row(inputs, trial, lr, {}, str(error)))
        print(trial_line(number, len(left), trial.arm, trial.spec, trial.seed, lr, text), flush=True)
    return failed


def _known(
    inputs: SweepInputs, wanted: Sequence[Trial], before: Sequence[dict[str, Any]]
) -> dict[str, list[tuple[float, float]]]:
    """Learning rates with their scores that earlier runs of the sweep tried, by group."""
    known: dict[str, list[tuple[float, float]]] = {inputs.descendant(trial, 0.0).group: [] for trial in wanted}
    by_name = {row["descendant"]: row for row in before}
    for trial in wanted:
        for name, row in by_name.items():
            one = inputs.descendant(trial, row["lr"])
            if one.name == name:
                known[one.group].append((row["lr"], row["top1"]))
    return known


def _tune(
    inputs: SweepInputs,
    left: Sequence[dict[str, Any]],
    known: dict[str, list[tuple[float, float]]],
    on_start: Callable[[], None],
) -> list[dict[str, Any]]:
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")  # histories are published with each descendant
    os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "60")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # else Tune prints a banner although it is told to be quiet
    from ray import tune

    from ray_learngene.cluster import cluster_has_gpus, ray_cluster, require_resources
    from ray_learngene.preemption import CatchesSigterm
    from ray_learngene.search import GroupedASHA, LearningRateSearch
    from ray_learngene.sweep_progress import SweepProgress

    config = inputs.config
    store = Store(config.store, config.store_patience)
    search = LearningRateSearch(left, known, config) if config.lr_search else None
    space = {} if search else {"one": tune.grid_search([{**group, "lr": config.lr} for group in left])}
    with ray_cluster(config.address):
        gpus = float(cluster_has_gpus()) if config.gpus_per_trial is None else config.gpus_per_trial
        require_resources(config.address, 1, config.cpus_per_trial, gpus, "trials")
        on_start()
        storage_path, storage_filesystem = store.ray_storage(f"sweep-{config.name}")
        resources = {"CPU": config.cpus_per_trial, "GPU": gpus}
        _train.__mixins__ = (CatchesSigterm,)  # type: ignore[attr-defined]  # how Tune extends a function's actor
        results = tune.Tuner(
            tune.with_resources(tune.with_parameters(_train, inputs=inputs), resources),
            param_space=space,
            tune_config=tune.TuneConfig(
                num_samples=len(left) if search else 1,
                metric="top1",
                mode="max",
                search_alg=search,
                scheduler=GroupedASHA(config.epochs) if config.asha else None,
                max_concurrent_trials=config.max_concurrent or None,
                reuse_actors=True,
                trial_dirname_creator=lambda trial: trial.trial_id,
            ),
            run_config=tune.RunConfig(
                name=f"sweep-{config.name}",
                storage_path=storage_path,
                storage_filesystem=storage_filesystem,
                failure_config=tune.FailureConfig(max_failures=config.max_failures),
                callbacks=[SweepProgress(len(left))],
                verbose=0,
            ),
        ).fit()
        ended = [results[index] for index in range(len(results))]
    rows = [_unfinished(inputs, result) for result in ended if not (result.metrics or {}).get("finished")]
    for row in rows:
        if row["status"] == "stopped":  # for good, unlike a failed one
            StoreCheckpoints(store, f"{config.name}/{row['descendant']}").remove()
    return rows


def _train(one: dict[str, Any], inputs: SweepInputs) -> None:
    """One Tune trial. What trying again would not help is reported, not raised."""
    import torch
    from ray import tune

    config = inputs.config
    torch.set_num_threads(max(1, int(config.cpus_per_trial)))
    if torch.cuda.is_available() and 0 < (config.gpus_per_trial or 0) < 1:
        torch.cuda.set_per_process_memory_fraction(config.gpus_per_trial or 1)  # Ray's shares are bookkeeping only
    one = one.get("one", one)

    def report(metrics: dict[str, Any]) -> None:
        if "top1" in metrics:  # Tune refuses a result without what it compares, such as one in mid-epoch
            tune.report(metrics)

    try:
        row = inputs.train(one["trial"], one["lr"], report)
    except RunError as error:
        tune.report({"top1": float("-inf"), "error": str(error)})
        return
    except Interrupted:
        os._exit(termination.STATUS)  # Tune starts it elsewhere; it counts as a failure only if its node stays
    tune.report({**row, "epoch": config.epochs, "epochs": config.epochs, "finished": True})


def _unfinished(inputs: SweepInputs, result: Any) -> dict[str, Any]:
    one, metrics = result.config.get("one", result.config), result.metrics or {}
    trial: Trial = one["trial"]
    error = metrics.get("error") or (str(result.error).strip().splitlines()[-1] if result.error else None)
    return _unfinished_row(inputs, trial, one["lr"], metrics, error)


def _unfinished_row(
    inputs: SweepInputs, trial: Trial, lr: float, metrics: dict[str, Any], error: str | None
) -> dict[str, Any]:
    return {
        "descendant": inputs.descendant(trial, lr).name,
        "sweep": inputs.config.name,
        "status": "failed" if error else "stopped",
        "error": error,
        "arm": trial.arm,
        "width": trial.spec.width,
        "depth": trial.spec.depth,
        "seed": trial.seed,
        "lr": lr,
        "epochs": inputs.config.epochs,
        "top1": metrics.get("top1"),
        "steps": metrics.get("step"),
        "seconds": metrics.get("seconds"),
    }

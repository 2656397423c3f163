"""Run the trials of a sweep: every descendant that is not finished, several in one process if that pays."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from ray_learngene.data.pipeline import images_text
from ray_learngene.errors import Diverged, Interrupted, RunError
from ray_learngene.progress import counted
from ray_learngene.store.checkpoints import continuing_text, steps_of
from ray_learngene.store.manifest import Manifest
from ray_learngene.sweeps.trial import Known, Trial
from ray_learngene.sweeps.trials import Follower, Outcomes, SweepInputs, log_packs

if TYPE_CHECKING:
    from ray.tune import Callback

log = logging.getLogger(__name__)


def run_trials(
    inputs: SweepInputs,
    wanted: Sequence[Trial],
    before: Sequence[dict[str, Any]],
    on_start: Callable[[int], None],
    keep: Callable[[dict[str, Any]], None],
    followers: Sequence[Follower] = (),
    callbacks: Sequence[Callback] = (),
) -> None:
    """Train the wanted trials that have no row yet, on the cluster or in this process.

    Args:
        on_start: Called with the number of trials to train once the cluster has answered, before the first of them.
        keep: Called with a row for each trial that failed or was stopped early; those that finished are in the store.
        followers: Are told what happens to every trial.
        callbacks: Ray Tune's.

    Raises:
        Interrupted: this process was asked to end.
    """
    config = inputs.config
    settled = {row["descendant"] for row in before}
    settled_all = not config.lr_search and all(inputs.descendant(trial).name in settled for trial in wanted)
    checkpoints = [] if settled_all else inputs.store.manifests("checkpoint", config.name)
    every, following, known = list(wanted), list[Trial](), Known()
    if config.lr_search:
        from ray_learngene.sweeps.learning_rates import drawn_and_following

        known = _known(inputs, wanted, before)
        every, following = drawn_and_following(wanted, known, _begun(inputs, wanted, settled, checkpoints), config)
    left = [trial for trial in every if inputs.descendant(trial).name not in settled]
    total, count = len(wanted) * max(1, config.lr_search), len(left) + len(following)
    done = f", {total - count} already finished" if count < total else ""
    log.info(f"sweep {config.name}: {counted(count, 'descendant')} to train{done}")
    steps = {name.removeprefix(f"{config.name}/"): step for name, step in steps_of(checkpoints).items()}
    if begun := {name: steps[name] for trial in left if (name := inputs.descendant(trial).name) in steps}:
        epochs = max(inputs.epochs(trial) for trial in left if inputs.descendant(trial).name in begun)
        total_steps = epochs * (len(inputs.images.train) // config.batch_size)
        log.info(continuing_text(begun, total_steps))
    if count:
        _log_beginning(inputs, [*left, *following])
    outcomes = Outcomes(inputs, [*left, *following], keep, followers)
    if count and not config.in_process:
        from ray_learngene.sweeps.ray_tune import run_with_ray_tune

        run_with_ray_tune(inputs, left, following, known, outcomes, partial(on_start, count), callbacks)
    else:
        on_start(count)
        _train_here(inputs, left, outcomes)


def _log_beginning(inputs: SweepInputs, trials: Sequence[Trial]) -> None:
    config, images = inputs.config, inputs.images
    sizes = sorted({inputs.costs[trial.spec]["params"] for trial in trials})
    least = f"{sizes[0]:,.0f} to " if len(sizes) > 1 else ""
    epochs = sorted({inputs.epochs(trial) for trial in trials})
    fewest = f"{epochs[0]} to " if len(epochs) > 1 else ""
    steps = len(images.train) // config.batch_size
    where = "in this process" if config.in_process else f"by Ray: CPUs of each training {config.cpus_per_trial:g}"
    log.info(
        f"{images_text(images)}, {fewest}{counted(epochs[-1], 'epoch')} of {counted(steps, 'step')} of "
        f"{counted(config.batch_size, 'image')}, {least}{sizes[-1]:,.0f} parameters, {where}"
    )


def _train_here(inputs: SweepInputs, left: Sequence[Trial], outcomes: Outcomes) -> None:
    """Train one pack after another in this process."""
    from ray_learngene.sweeps.capacity import own_place

    def ended(trial: Trial, outcome: dict[str, Any] | RunError) -> None:
        if isinstance(outcome, RunError):
            outcomes.failed(trial, str(outcome), {}, diverged=isinstance(outcome, Diverged))
        else:
            outcomes.finished(trial, outcome)

    packs = inputs.packs(left, own_place()) if left else []
    log_packs(packs)
    try:
        for trials in packs:
            inputs.train(trials, outcomes.reported, ended)
    except Interrupted:
        raise Interrupted(outcomes.ended, outcomes.total, "descendant") from None


def _known(inputs: SweepInputs, wanted: Sequence[Trial], before: Sequence[dict[str, Any]]) -> Known:
    """Return the learning rates that earlier runs tried, and their scores."""
    known: Known = {trial.group: [] for trial in wanted}
    by_name = {row["descendant"]: row for row in before}
    for trial in wanted:
        for name, row in by_name.items():
            if inputs.descendant(replace(trial, lr=row["lr"])).name == name:
                known[trial.group].append((row["lr"], row["top1"]))
    return known


def _begun(
    inputs: SweepInputs, wanted: Sequence[Trial], settled: Collection[str], checkpoints: Sequence[Manifest]
) -> list[Trial]:
    """Return the trials that earlier runs left with a checkpoint, at any learning rate."""
    config = inputs.config
    left = {
        manifest.name.removeprefix(f"{config.name}/"): manifest.metadata["lr"]
        for manifest in checkpoints
        if "lr" in manifest.metadata  # else an earlier version wrote it
    }
    begun = [(replace(trial, lr=lr), name) for name, lr in left.items() if name not in settled for trial in wanted]
    return [trial for trial, name in begun if inputs.descendant(trial).name == name]

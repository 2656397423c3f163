"""A sweep: train many descendants of one learngene in parallel, on Ray Tune.

learngene sweep --learngene digits --name digits --data digits --budgets "params<=150k" "params<=300k" --epochs 5
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pandas

from ray_learngene.config import SweepConfig
from ray_learngene.delivery.export import require_packages
from ray_learngene.errors import Diverged, RunError, UserError
from ray_learngene.models.compile import require_compiler
from ray_learngene.progress import counted
from ray_learngene.store.checkpoints import StoreCheckpoints
from ray_learngene.store.store import Store
from ray_learngene.store.sweeps import SETTINGS, sweep_file
from ray_learngene.sweeps.arms import Arm
from ray_learngene.sweeps.exports import AddsExports, add_exports
from ray_learngene.sweeps.live_page import LivePage
from ray_learngene.sweeps.prepare import prepare
from ray_learngene.sweeps.results import write_results
from ray_learngene.sweeps.run import run_trials
from ray_learngene.sweeps.running import running, soon_over
from ray_learngene.sweeps.selection import check_texts
from ray_learngene.sweeps.tracked import TrackedTrials
from ray_learngene.sweeps.trial import Trial
from ray_learngene.sweeps.trials import Follower
from ray_learngene.tracking.trackers import Trackers
from ray_learngene.training.optimizers import traits_of

if TYPE_CHECKING:
    from ray.tune import Callback

log = logging.getLogger(__name__)


def sweep(config: SweepConfig, callbacks: Sequence[Callback] = ()) -> pandas.DataFrame:
    """Train every descendant that is not finished yet, and publish each as it finishes.

    Args:
        callbacks: Ray Tune's (`ray.tune.Callback`), which run in this process. A Tune trial trains one descendant where
            `siblings` is 1, else several; `member` of a result says which.

    Returns:
        The results table, one row per descendant, as written to `sweeps/<name>/results.parquet`.

    Raises:
        Diverged: some did, and none failed otherwise; the others are published.
        Interrupted: this process was asked to end; the same call continues.
        UserError: see the message; nothing has been trained then, or (some failed) the others are published.
    """
    if callbacks and config.in_process:
        raise UserError("callbacks are Ray Tune's: leave in_process out")
    sweep_file(config.name, SETTINGS)  # refuses a name that no store can hold
    check_texts(config)
    traits_of(config)  # refuses an optimizer that does not work
    require_packages(config.export)
    if config.compile and config.in_process:  # else it is a matter of the hosts that train
        require_compiler()
    store = Store.of(config)
    store.check(write=True)
    with Trackers(config.track) as trackers:
        return _sweep(config, store, trackers, callbacks)


def _sweep(config: SweepConfig, store: Store, trackers: Trackers, callbacks: Sequence[Callback]) -> pandas.DataFrame:
    prepared = prepare(config, store)
    inputs, before, wanted, config = prepared.inputs, prepared.before, prepared.wanted, prepared.inputs.config
    settings = prepared.settings
    _tell_scratch(config, tuple(dict.fromkeys(trial.arm for trial in wanted)), wanted)
    text = json.dumps(settings, indent=2) + "\n"
    unfinished: list[dict[str, Any]] = []
    page = LivePage(store, config.name, before)
    tracked = TrackedTrials(trackers, inputs)

    def on_start(count: int) -> None:
        store.write_text(sweep_file(config.name, SETTINGS), text)
        page.started(count)

    try:
        with running(store, config.name), page, soon_over(store):
            followers: list[Follower] = [page, tracked] if config.track else [page]
            run_trials(inputs, wanted, before, on_start, unfinished.append, followers, callbacks)
            add_exports(AddsExports(config, inputs.images, store), before, tracked.exported)
    except BaseException:
        if unfinished:
            with suppress(UserError):  # what ended the sweep matters more
                _settle(store, config.name, before, unfinished)
        raise
    table = _settle(store, config.name, before, unfinished)
    failed = [row for row in unfinished if row["status"] in ("failed", "diverged")]
    if failed:
        kind = Diverged if all(row["status"] == "diverged" for row in failed) else RunError
        others = "the others are published, " if len(failed) < len(wanted) else ""
        raise kind(
            f"{len(failed)} of {counted(len(wanted), 'descendant')} failed: {failed[0]['error']}; {others}"
            "run the sweep again to retry these"
        )
    return table


def _tell_scratch(config: SweepConfig, arms: Sequence[Arm], wanted: Sequence[Trial]) -> None:
    """Say how long arms without a learngene train."""
    names = ", ".join(arm.text for arm in arms if not arm.learngene)
    found = sorted({trial.epochs for trial in wanted if trial.epochs is not None})
    epochs = (f"{found[0]} to " if len(found) > 1 else "") + counted(found[-1] if found else config.epochs, "epoch")
    if found:
        log.info(f"{names}: {epochs}, the cost of a descendant with its share of the learngene (--scratch cost)")
    elif names:
        log.info(f"{names}: {epochs}, as the others; the learngene's cost is not counted (--scratch epochs)")


def _settle(
    store: Store, name: str, before: Sequence[dict[str, Any]], unfinished: Sequence[dict[str, Any]]
) -> pandas.DataFrame:
    """Write the results table, and remove the checkpoints of trials that no later run continues."""
    stopped = [row for row in before if row["status"] == "stopped"]
    table = write_results(store, name, [*stopped, *unfinished])
    for row in unfinished:
        if row["status"] in ("stopped", "diverged"):
            StoreCheckpoints(store, f"{name}/{row['descendant']}").remove()
    return table

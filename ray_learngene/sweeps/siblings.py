"""Train descendants in this process: one alone, or several in lockstep on the same views. No Ray here."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

from ray_learngene import sigterm
from ray_learngene.config import SweepConfig
from ray_learngene.errors import Interrupted, RunError
from ray_learngene.models.device import resolve_device
from ray_learngene.sweeps.descendant import SweepContext
from ray_learngene.sweeps.descendant_run import DescendantRun, DescendantTask, descendant_batches
from ray_learngene.training.clock import Clock
from ray_learngene.training.lockstep import Group, train
from ray_learngene.training.out_of_memory import is_out_of_memory, release_memory, within_memory
from ray_learngene.training.trainer import Trainer

log = logging.getLogger(__name__)

Row = dict[str, Any]
Ended = Callable[[DescendantTask, Row | RunError], None]


def train_descendant(task: DescendantTask, shared: SweepContext) -> Row:
    """Train one descendant from where its last checkpoint left it, and publish it.

    Returns:
        Its row of the results table.

    Raises:
        Interrupted: SIGTERM came; a checkpoint holds what is done.
        RunError: training cannot go on.
    """
    clock = Clock(resolve_device())
    rows: list[Row] = []

    def attempt(settings: SweepConfig) -> None:
        run = DescendantRun(task, shared, settings, settings.checkpoint_seconds, clock)
        with sigterm.graceful():
            _train([run], shared, settings, lambda run, row: rows.append(row))

    within_memory(attempt, task.settings(shared.config), tell=lambda text: log.info(f"{task.one.name}: {text}"))
    return rows[0]


def train_siblings(tasks: Sequence[DescendantTask], shared: SweepContext, ended: Ended) -> None:
    """Train descendants that see the same views in lockstep, and publish each as it finishes.

    The results are those of `train_descendant`, bit for bit on the CPU. One that runs out of memory is trained alone
    when the others have ended.

    Args:
        tasks: Of one seed of views.
        ended: Called with each and its row, or why it cannot go on.

    Raises:
        Interrupted: SIGTERM came; checkpoints hold what is done.
        Exception: what ended one and may not do so another time; the others have ended before.
    """
    unexpected: list[Exception] = []
    for task in tasks if len(tasks) == 1 else _together(tasks, shared, ended, unexpected):
        try:
            ended(task, train_descendant(task, shared))
        except Interrupted:
            raise
        except RunError as error:
            ended(task, error)
        except Exception as error:
            unexpected.append(error)
    if unexpected:
        raise unexpected[0]


def _together(
    tasks: Sequence[DescendantTask], shared: SweepContext, ended: Ended, unexpected: list[Exception]
) -> list[DescendantTask]:
    """Train descendants in lockstep; return those that ran out of memory, to be trained alone."""
    # a checkpoint of all costs so many times that of one; the best time between two grows by the root (Young, 1974)
    config = shared.config
    seconds = config.checkpoint_seconds * len(tasks) ** 0.5
    device = resolve_device()
    runs = [DescendantRun(task, shared, task.settings(config), seconds, Clock(device)) for task in tasks]
    interrupted: list[Interrupted] = []
    alone: list[DescendantTask] = []

    def failed(run: DescendantRun, error: Exception) -> None:
        run.release()
        if isinstance(error, Interrupted):
            interrupted.append(error)
        elif is_out_of_memory(error):
            release_memory()
            alone.append(run.task)
        elif isinstance(error, RunError):
            ended(run.task, error)
        else:
            unexpected.append(error)

    with sigterm.graceful():
        longest = max((task.settings(config) for task in tasks), key=lambda settings: settings.epochs)
        _train(runs, shared, longest, lambda run, row: ended(run.task, row), failed)
        if interrupted:
            raise min(interrupted, key=lambda one: one.done)
    return alone


def _train(
    runs: Sequence[DescendantRun],
    shared: SweepContext,
    settings: SweepConfig,
    published: Callable[[DescendantRun, Row], None],
    failed: Callable[[DescendantRun, Exception], None] | None = None,
) -> None:
    """Expand, fit to the size where a method does so, tune and publish; `failed` as in `lockstep.train`."""
    group = Group(runs, failed)
    with ExitStack() as uploads:
        for run in runs:
            uploads.callback(run.checkpoints.wait)
        try:
            fit_batches = descendant_batches(shared, settings, taught=False)
            tune_batches = descendant_batches(shared, settings, taught=True)
        except RunError as error:
            for run in runs:
                group.drop(run, error)
            return
        group.each(lambda run: run.expand())
        for run in list(group.running):
            if run.row is not None:  # an earlier process published it
                group.leave(run)
                published(run, run.row)
        if fits := {run.fitting: run for run in group.running if run.fitting is not None}:
            train(
                list(fits),
                fit_batches,
                stop=sigterm.requested,
                failed=failed and (lambda fitting, error: group.drop(fits[fitting], error)),
            )
            fits.clear()
        group.each(lambda run: run.open_trainer())

        def finished(trainer: Trainer) -> None:
            run = trainers[trainer]
            published(run, run.publish())
            run.release()

        if trainers := {run.trainer: run for run in group.running}:
            train(
                list(trainers),
                tune_batches,
                stop=sigterm.requested,
                finished=finished,
                failed=failed and (lambda trainer, error: group.drop(trainers[trainer], error)),
            )

"""The trials of a sweep: what each trains, and how it ends."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ray_learngene.errors import RunError
from ray_learngene.models.costs import kept_memory, macs, step_memory
from ray_learngene.models.specs import Spec
from ray_learngene.progress import counted
from ray_learngene.store.learngenes import StoredLearngene
from ray_learngene.sweeps.descendant import Descendant, SweepContext, descendant
from ray_learngene.sweeps.descendant_run import DescendantTask
from ray_learngene.sweeps.packing import Load, Place, pack
from ray_learngene.sweeps.siblings import train_siblings
from ray_learngene.sweeps.status import SweepStatus
from ray_learngene.sweeps.trial import Trial
from ray_learngene.training.optimizers import traits_of

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SweepInputs(SweepContext):
    """What all trials of a sweep share; sent to the cluster once.

    Attributes:
        learngenes: Of all arms, by name.
        costs: Columns of the results table by spec: parameters, MACs, memory, measured latency.
    """

    learngenes: dict[str, StoredLearngene]
    costs: dict[Spec, dict[str, Any]]

    def learngene(self, trial: Trial) -> StoredLearngene | None:
        """Return the learngene that a trial expands."""
        name = trial.arm.learngene_of(trial.spec, trial.seed)
        return self.learngenes[name] if name else None

    def descendant(self, trial: Trial) -> Descendant:
        """Return the descendant that a trial trains."""
        return descendant(trial.arm, trial.spec, trial.seed, trial.lr, self, self.learngene(trial), trial.epochs)

    def epochs(self, trial: Trial) -> int:
        """Return the epochs of a trial."""
        return self.config.epochs if trial.epochs is None else trial.epochs

    def train(
        self,
        trials: Sequence[Trial],
        report: Callable[[Trial, dict[str, Any]], None],
        ended: Callable[[Trial, dict[str, Any] | RunError], None],
    ) -> None:
        """Train the descendants of trials that see the same views, side by side; see `train_siblings`."""

        def tuning(trial: Trial) -> DescendantTask:
            return DescendantTask(
                self.descendant(trial),
                self.learngene(trial),
                self.costs[trial.spec],
                lambda metrics: report(trial, metrics),
            )

        trial_of = {tuning(trial): trial for trial in trials}
        train_siblings(list(trial_of), self, lambda tuning, outcome: ended(trial_of[tuning], outcome))

    def work(self, trial: Trial) -> float:
        """MACs for one image of every epoch: what a trial costs, compared with the others."""
        return macs(trial.spec) * max(1, self.epochs(trial))

    def packs(self, trials: Sequence[Trial], place: Place) -> list[list[Trial]]:
        """Group trials into packs for places of a kind."""
        config = self.config
        micro_batch = config.batch_size // config.accumulation
        image = 4 * math.prod(self.images.preprocessing.image_size)
        shared = 2 * config.batch_size * image  # a batch, and the next or what it was made of
        if self.ancestry is not None:
            shared += sum(each.numel() * each.element_size() for each in self.ancestry.state_dict().values())
        loads = [
            Load(
                trial,
                trial.seed if config.view_seed is None else config.view_seed,
                self.work(trial),
                kept_memory(trial.spec, averaged=config.ema > 0, moments=traits_of(config).moments),
                step_memory(trial.spec, micro_batch, checkpointed=config.grad_checkpointing),
            )
            for trial in trials
        ]
        most = 1 if config.asha else config.most_siblings  # ASHA stops Tune's trials, not members of them
        packs = pack(loads, Place(place.count, place.memory - shared), most)
        return [[load.trial for load in each.loads] for each in packs]


class Follower(Protocol):
    """Is told in the driver, from any thread, what happens to the trials of a sweep. Returns at once, never raises."""

    def reported(self, trial: Trial, metrics: Mapping[str, Any]) -> None:
        """A trial has reached an epoch, or a step on the way there; this may come late, after its end."""

    def finished(self, trial: Trial, row: Mapping[str, Any]) -> None:
        """A trial's descendant is in the store."""

    def unfinished(self, trial: Trial, row: Mapping[str, Any]) -> None:
        """A trial ended otherwise; its row says how."""


class Outcomes:
    """Records how trials end: logs a line for each, and keeps a row for each that did not finish.

    Args:
        trials: All that are to be trained.
        keep: Called with those rows.
        followers: Are told everything.

    Attributes:
        status: Logs how far the sweep is.
    """

    def __init__(
        self,
        inputs: SweepInputs,
        trials: Sequence[Trial],
        keep: Callable[[dict[str, Any]], None],
        followers: Sequence[Follower] = (),
    ) -> None:
        self.inputs, self.total, self.keep, self.followers, self.ended = inputs, len(trials), keep, followers, 0
        self.status = SweepStatus(inputs.config.name, inputs.work, trials)

    def reported(self, trial: Trial, metrics: dict[str, Any]) -> None:
        """It has reached an epoch, or a step on the way there; from any thread."""
        self.status.report(trial, metrics)
        for follower in self.followers:
            follower.reported(trial, metrics)

    def finished(self, trial: Trial, row: dict[str, Any]) -> None:
        """It is in the store."""
        self._log(trial, finished_text(row))
        for follower in self.followers:
            follower.finished(trial, row)

    def failed(self, trial: Trial, error: str, metrics: dict[str, Any], *, diverged: bool = False) -> None:
        """`metrics` are the last that it reported, if any."""
        self._log(trial, f"failed: {error}")
        self._keep(trial, "diverged" if diverged else "failed", error, metrics)

    def stopped(self, trial: Trial, metrics: dict[str, Any]) -> None:
        """Early, by the scheduler; not an error."""
        epoch, top1 = metrics.get("epoch", 0), metrics.get("top1", 0)
        self._log(trial, f"stopped early at epoch {epoch:g} with top-1 {top1:.2f} %")
        self._keep(trial, "stopped", None, metrics)

    def _log(self, trial: Trial, text: str) -> None:
        self.ended += 1
        self.status.end(trial)
        log.info(trial_line(self.ended, self.total, trial, text))

    def _keep(self, trial: Trial, status: str, error: str | None, metrics: dict[str, Any]) -> None:
        row = {
            "descendant": self.inputs.descendant(trial).name,
            "sweep": self.inputs.config.name,
            "status": status,
            "error": error,
            "arm": trial.arm.text,
            "width": trial.spec.width,
            "depth": trial.spec.depth,
            "seed": trial.seed,
            "lr": trial.lr,
            "epochs": self.inputs.epochs(trial),
            "top1": metrics.get("top1"),
            "steps": metrics.get("step"),
            "seconds": metrics.get("seconds"),
        }
        self.keep(row)
        for follower in self.followers:
            follower.unfinished(trial, row)


def log_packs(packs: Sequence[Sequence[Trial]]) -> None:
    """Log how many trials train together, if any do."""
    if largest := max((len(trials) for trials in packs if len(trials) > 1), default=0):
        log.info(f"up to {largest} of them train side by side, on images that are read once (--siblings)")


def trial_line(number: int, total: int, trial: Trial, text: str) -> str:
    """Return the line of a trial that has ended."""
    width = len(str(total))
    size = f"width {trial.spec.width:3} depth {trial.spec.layers:>2}"
    return f"[{number:{width}}/{total}] {trial.arm.text:10} {size}   seed {trial.seed}   lr {trial.lr:.1e}   {text}"


def finished_text(row: Mapping[str, Any]) -> str:
    """Return the result in the line of a finished trial."""
    return (
        f"top-1 {row['top1_untuned']:6.2f} % untuned, {row['top1']:6.2f} % tuned   "
        f"{row['params'] / 1e6:8.3f} M parameters   {row['seconds']:6.1f} s"
        + (f"   {counted(row['unreadable'], 'unreadable image')} skipped" if row.get("unreadable") else "")
    )

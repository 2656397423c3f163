"""How far the trials of a sweep are: a bar for the sweep and one for each model, and the accuracy of each epoch."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ray_learngene.progress import Progress, counted
from ray_learngene.sweeps.trial import Trial

_SHOWN = 6  # models in a line


class SweepStatus:
    """Logs how far a sweep is.

    Args:
        work: What a trial costs, in any unit.
        trials: All that are to be trained; a learning rate that a search will choose stands for no trial of its own.
    """

    def __init__(self, name: str, work: Callable[[Trial], float], trials: Sequence[Trial]) -> None:
        self._work, self._count = work, len(trials)
        self._ended: set[Trial] = set()
        self._all = Progress(f"sweep {name}", sum(map(work, trials)), "", warms_up=True)
        self._done = 0.0  # by trials that have ended
        self._models: dict[Trial, Progress] = {}
        self._scores: dict[Trial, str] = {}  # the last to report comes last
        self._lock = threading.Lock()

    def report(self, trial: Trial, metrics: Mapping[str, Any]) -> None:
        """A trial's epoch or step; from any thread."""
        with self._lock:
            if trial in self._ended:  # its worker's messages take another way than its result
                return
            name, total = trial_name(trial), max(1, metrics["total_steps"])
            if trial not in self._models:
                self._models[trial] = Progress(name, total, "steps", quiet=True)
                self._all.skip(self._work(trial) * metrics["step"] / total)
            model = self._models[trial]
            epoch = f"epoch {metrics['epoch']:.3g}/{metrics['epochs']}"
            if "fit_step" in metrics:
                epoch = f"fitting {metrics['fit_step']}/{metrics['fit_steps']}"
            if "top1" in metrics:
                self._scores.pop(trial, None)
                self._scores[trial] = f"{epoch} {metrics['top1']:.2f} %"
            model.at(metrics["step"], self._scores.get(trial, epoch))
            self._show()

    def end(self, trial: Trial) -> None:
        """A trial has ended, in whatever way."""
        with self._lock:
            self._ended.add(trial)
            self._done += self._work(trial)
            self._scores.pop(trial, None)
            if model := self._models.pop(trial, None):
                model.end()
            else:  # an earlier run did it, or it failed at once
                self._all.skip(self._work(trial))
            if len(self._ended) >= self._count:
                self._all.end()
            else:
                self._show()

    def _show(self) -> None:
        running = sum(self._work(trial) * model.done / model.total for trial, model in self._models.items())
        last = [f"{trial_name(trial)} {text}" for trial, text in list(self._scores.items())[-_SHOWN:]]
        more = f"top-1: {', '.join(last)}" if last else ""
        self._all.at(self._done + running, f"{len(self._ended)} of {counted(self._count, 'descendant')} ended", more)


def trial_name(trial: Trial) -> str:
    """Return a short name of a trial, for one line of several."""
    return f"{trial.arm.text} w{trial.spec.width} d{trial.spec.layers} s{trial.seed} lr {trial.lr:.0e}"

"""The trials of a sweep as runs of its trackers: one for each descendant, under its name in the store."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ray_learngene.sweeps.trial import Trial
from ray_learngene.sweeps.trials import SweepInputs
from ray_learngene.tracking.base import curve_points
from ray_learngene.tracking.trackers import Trackers, parameters_of, reference_of, run_of


class TrackedTrials:
    """Follows the trials of a sweep and tells its trackers."""

    def __init__(self, trackers: Trackers, inputs: SweepInputs) -> None:
        self.trackers, self.inputs = trackers, inputs
        self._names: dict[Trial, str] = {}
        self._parameters = parameters_of(inputs.config)

    def reported(self, trial: Trial, metrics: Mapping[str, Any]) -> None:
        """A trial has reached an epoch, or a step on the way there; this may come late, after its end."""
        self.trackers.log(self._run(trial), metrics["step"], curve_points(metrics))

    def finished(self, trial: Trial, row: Mapping[str, Any]) -> None:
        """A trial's descendant is in the store."""
        self._finish(self._run(trial), row)

    def exported(self, row: Mapping[str, Any]) -> None:
        """A descendant that was published before is published again, with exports."""
        run = run_of("descendant", f"{row['sweep']}/{row['descendant']}")
        self.trackers.start(run, {})
        self._finish(run, row)

    def unfinished(self, trial: Trial, row: Mapping[str, Any]) -> None:
        """A trial ended otherwise; its row says how."""
        self.trackers.fail(self._run(trial), row["error"] or row["status"])

    def _finish(self, run: str, row: Mapping[str, Any]) -> None:
        name, store = f"{row['sweep']}/{row['descendant']}", self.inputs.store
        self.trackers.finish(run, row, lambda: reference_of(store, store.manifest("descendant", name)))

    def _run(self, trial: Trial) -> str:
        """Return the run of a trial, begun or continued."""
        if trial not in self._names:
            name = f"{self.inputs.config.name}/{self.inputs.descendant(trial).name}"
            self._names[trial] = run_of("descendant", name)
            spec = {key: str(value) for key, value in trial.spec.model_dump().items()}
            own = {"arm": trial.arm.text, "seed": str(trial.seed), "lr": f"{trial.lr:g}", **spec}
            self.trackers.start(self._names[trial], self._parameters | own)
        return self._names[trial]

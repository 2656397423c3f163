"""One line in the terminal for every trial of a sweep that ends."""

from __future__ import annotations

from typing import Any

from ray.tune import Callback
from ray.tune.experiment import Trial

from ray_learngene.terminal import finished_text, trial_line


class SweepProgress(Callback):
    """Prints what finished, in the driver."""

    def __init__(self, total: int) -> None:
        self.total, self.ended = total, 0

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        result = trial.last_result
        if result.get("error"):
            self._print(trial, f"failed: {result['error']}")
        elif result.get("finished"):
            self._print(trial, finished_text(result))
        else:
            self._print(
                trial, f"stopped early at epoch {result.get('epoch', 0):g} with top-1 {result.get('top1', 0):.2f} %"
            )

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        lines = ((trial.get_error() and str(trial.get_error())) or "").strip().splitlines()
        self._print(trial, f"failed: {lines[-1] if lines else 'its process died'}")

    def _print(self, trial: Trial, text: str) -> None:
        self.ended += 1
        one = trial.config.get("one", trial.config)
        target = one["trial"]
        line = trial_line(self.ended, self.total, target.arm, target.spec, target.seed, one["lr"], text)
        print(line, flush=True)

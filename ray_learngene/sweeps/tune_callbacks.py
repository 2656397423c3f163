"""Callbacks of Ray Tune: record how every member of a pack ends, and why a process was ended."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from ray.tune import Callback, Stopper
from ray.tune.experiment import Trial

from ray_learngene.sweeps.trials import Outcomes
from ray_learngene.training.out_of_memory import says_out_of_memory

_LOW_ON_MEMORY = (
    "its node was low on memory and ended its process: run fewer at once (--max-concurrent, more --cpus-per-trial), "
    "lower --batch-size or raise --accumulation"
)


class SweepProgress(Callback):
    """Record in the driver how every descendant ends; a restarted process continues with those that have not ended.

    Args:
        asked: Set once trials that start find that this process was asked to end (see `stop_requests`).

    Attributes:
        running: Tune's trials that were started before, and have not ended.
    """

    def __init__(self, outcomes: Outcomes, asked: threading.Event) -> None:
        self.outcomes, self.asked = outcomes, asked
        self.running: set[str] = set()
        self._interrupted: set[str] = set()
        self._ended: dict[str, set[int]] = {}  # members of packs, by the identity of Tune's trial
        self._metrics: dict[tuple[str, int], dict[str, Any]] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Pickle nothing: Tune writes its callbacks into the store, and this one holds all learngenes and the ancestry
        model."""
        return {}

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        if not self.asked.is_set():
            self.running.add(trial.trial_id)

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        if result.get("interrupted"):
            self._interrupted.add(trial.trial_id)
            return
        member = result["member"]
        if result.get("error"):
            self._end(trial, member, error=result["error"], diverged=result["diverged"])
        elif result.get("finished"):
            self._end(trial, member, row=result)
        else:
            self._metrics[trial.trial_id, member] = result
            self.outcomes.reported(_config(trial)["pack"][member], result)

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        if trial.trial_id not in self._interrupted:
            for member in range(len(_config(trial)["pack"])):
                self._end(trial, member)
        self._forget(trial)

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        error = _last_error(trial)
        lines = error.strip().splitlines()
        text = _LOW_ON_MEMORY if says_out_of_memory(error) else lines[-1] if lines else "its process died"
        for member in range(len(_config(trial)["pack"])):
            self._end(trial, member, error=text)
        self._forget(trial)

    def on_trial_recover(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        self.running.discard(trial.trial_id)  # until it is started again
        config = _config(trial)
        ended = self._ended.get(trial.trial_id, set())
        changes: dict[str, Any] = {"ended": sorted(ended)}
        if says_out_of_memory(_last_error(trial)):  # Ray has ended the process: half as many at a time from now on
            at_once = config.get("at_once", len(config["pack"]))
            changes["at_once"] = max(1, min(at_once, len(config["pack"]) - len(ended)) // 2)
        trial.set_config({**trial.config, "one": {**config, **changes}})

    def _forget(self, trial: Trial) -> None:
        """Drop Tune's statistics of an ended trial, which it would keep until the sweep ends."""
        self.running.discard(trial.trial_id)
        trial.metric_analysis.clear()
        trial.metric_n_steps.clear()
        for member in range(len(_config(trial)["pack"])):
            self._metrics.pop((trial.trial_id, member), None)

    def _end(
        self,
        trial: Trial,
        member: int,
        row: dict[str, Any] | None = None,
        error: str | None = None,
        diverged: bool = False,
    ) -> None:
        """Tell how a member ended, the first time that it does; neither row nor error: the scheduler stopped it."""
        ended = self._ended.setdefault(trial.trial_id, set())
        if member in ended:
            return
        ended.add(member)
        target, metrics = _config(trial)["pack"][member], self._metrics.get((trial.trial_id, member), {})
        if row is not None:
            self.outcomes.finished(target, row)
        elif error is not None:
            self.outcomes.failed(target, error, metrics, diverged=diverged)
        else:
            self.outcomes.stopped(target, metrics)


class StopsWhenAsked(Stopper):
    """End an interrupted sweep once all running trials have written their checkpoints."""

    def __init__(self, progress: SweepProgress) -> None:
        self.progress = progress

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self.progress.asked.is_set() and not self.progress.running


def _config(trial: Trial) -> dict[str, Any]:
    return trial.config.get("one", trial.config)


def _last_error(trial: Trial) -> str:
    """Return Tune's note of a trial's last failure, on this host; `Trial.get_error` reads the storage too early."""
    path = trial.error_file and Path(trial.error_file)
    return path.read_text().rpartition("Failure # ")[2] if path and path.exists() else ""

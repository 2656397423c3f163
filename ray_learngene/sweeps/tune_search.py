"""Learning-rate search and early stopping inside each descendant's own group of trials.

Ray Tune compares all trials of an experiment with each other. In a sweep a small descendant must not lose to a large
one. So every group (same arm, spec and seed) has a search (Optuna) and a scheduler (ASHA) of its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import optuna
from ray import tune
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

from ray_learngene.config import SweepConfig
from ray_learngene.sweeps.learning_rates import DRAWN, drawn_rates
from ray_learngene.sweeps.trial import Known, Trial


class LearningRateSearch(Searcher):
    """One Optuna study over the learning rate per group.

    Args:
        packs: Trials that one process trains, in the order in which they shall start.
        following: Trials after those, each alone, whose learning rates follow from the scores of their groups.
        known: What earlier runs of the sweep tried.
    """

    def __init__(
        self, packs: Sequence[Sequence[Trial]], following: Sequence[Trial], known: Known, config: SweepConfig
    ) -> None:
        super().__init__(metric="top1", mode="max")
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._packs, self._following = [list(pack) for pack in packs], list(following)
        self._running: dict[str, dict[int, Trial]] = {}  # by Tune's trial and member of its pack
        self._asked: set[str] = set()  # Tune's trials whose learning rates are the studies'
        self._studies: dict[Any, OptunaSearch] = {}
        rates = drawn_rates(config)
        begun = Counter(trial.group for pack in packs for trial in pack if trial.lr not in rates)
        for group, scores in known.items():
            # a search that goes on must not choose again what it chose before
            seed = int(np.random.SeedSequence([config.seed, len(scores) + begun[group]]).generate_state(1)[0])
            sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=DRAWN)
            space = {"lr": tune.loguniform(config.lr_low, config.lr_high)}
            self._studies[group] = OptunaSearch(space, metric="top1", mode="max", sampler=sampler)
            for lr, score in scores:
                if config.lr_low <= lr <= config.lr_high:
                    self._studies[group].add_evaluated_point({"lr": lr}, score)

    def suggest(self, trial_id: str) -> Any:
        if self._packs:
            pack = self._packs.pop(0)
        elif self._following:
            trial = self._following.pop(0)
            suggestion: Any = self._studies[trial.group].suggest(trial_id)
            pack = [replace(trial, lr=suggestion["lr"])]
            self._asked.add(trial_id)
        else:
            return Searcher.FINISHED
        self._running[trial_id] = dict(enumerate(pack))
        return {"pack": pack}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        if result.get("finished") or result.get("error"):
            self._tell(trial_id, result["member"], result)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        last = result or {}
        for member in list(self._running[trial_id]):
            self._tell(trial_id, member, last if last.get("member") == member else None)

    def _tell(self, trial_id: str, member: int, result: dict[str, Any] | None) -> None:
        """Tell a study how a member ended, once; a member without a result does not count."""
        trial = self._running[trial_id].pop(member, None)
        if trial is None:
            return
        study = self._studies[trial.group]
        if trial_id in self._asked:
            study.on_trial_complete(trial_id, result, error=result is None)
        elif result is not None:
            study.add_evaluated_point({"lr": trial.lr}, result["top1"])

    def save(self, checkpoint_path: str) -> None:
        """Nothing: what is known is read from the store's manifests."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: see `save`."""


class GroupedASHA(FIFOScheduler):
    """ASHA (Li et al., 2020) among the trials of one group, each the only one of its pack.

    Args:
        epochs: Those of a trial.
    """

    def __init__(self, epochs: Callable[[Trial], int]) -> None:
        super().__init__()
        self._epochs = epochs
        self._schedulers: dict[Any, AsyncHyperBandScheduler] = {}

    def _of(self, trial: TuneTrial) -> AsyncHyperBandScheduler:
        one = trial.config["pack"][0]
        if one.group not in self._schedulers:
            epochs = max(1, self._epochs(one))
            self._schedulers[one.group] = AsyncHyperBandScheduler(
                time_attr="epoch", metric="top1", mode="max", max_t=epochs, grace_period=max(1, epochs // 8)
            )
        return self._schedulers[one.group]

    def on_trial_add(self, tune_controller: Any, trial: TuneTrial) -> None:
        self._of(trial).on_trial_add(tune_controller, trial)

    def on_trial_result(self, tune_controller: Any, trial: TuneTrial, result: dict[str, Any]) -> str:
        if result.get("epoch", 0) <= 0 or result.get("finished"):  # the untuned model; a published descendant
            return TrialScheduler.CONTINUE
        decision = self._of(trial).on_trial_result(tune_controller, trial, result)
        # At the last epoch ASHA stops a trial because it is done: let it publish.
        return TrialScheduler.CONTINUE if result["epoch"] >= result["epochs"] else decision

    def on_trial_complete(self, tune_controller: Any, trial: TuneTrial, result: dict[str, Any]) -> None:
        if result.get("epoch", 0) > 0:
            self._of(trial).on_trial_complete(tune_controller, trial, result)

    def on_trial_remove(self, tune_controller: Any, trial: TuneTrial) -> None:
        self._of(trial).on_trial_remove(tune_controller, trial)

"""Learning-rate search and early stopping inside each descendant's own group of trials.

Ray Tune compares all trials of an experiment with each other. In a sweep a small descendant must not lose to a large
one, so the search (Optuna) and the scheduler (ASHA) are kept once per group: same arm, same spec, same seed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import optuna
from ray import tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

from ray_learngene.config import SweepConfig


class LearningRateSearch(Searcher):
    """One Optuna study over the learning rate per group, served in turns, so that the largest sizes start first.

    Args:
        left: Trials still to run, up to their learning rates, in the order in which they shall start.
        known: Learning rates and scores that are already known, by group: a sweep that is run again goes on from there.
    """

    def __init__(
        self, left: Sequence[dict[str, Any]], known: dict[str, list[tuple[float, float]]], config: SweepConfig
    ) -> None:
        super().__init__(metric="top1", mode="max")
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._left = list(left)
        self._studies: dict[str, OptunaSearch] = {}
        self._group_of: dict[str, str] = {}
        for group in dict.fromkeys(one["group"] for one in left):
            # a search that goes on must not draw again what it drew before
            seed = int(np.random.SeedSequence([config.seed, len(known[group])]).generate_state(1)[0])
            sampler = optuna.samplers.TPESampler(seed=seed)
            space = {"lr": tune.loguniform(config.lr_low, config.lr_high)}
            study = OptunaSearch(space, metric="top1", mode="max", sampler=sampler)
            for lr, score in known[group]:
                study.add_evaluated_point({"lr": lr}, score)
            self._studies[group] = study

    def suggest(self, trial_id: str) -> Any:
        if not self._left:
            return Searcher.FINISHED
        one = self._left.pop(0)
        self._group_of[trial_id] = one["group"]
        suggestion = self._studies[one["group"]].suggest(trial_id) or {}
        return {**one, "lr": suggestion["lr"]}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        self._studies[self._group_of[trial_id]].on_trial_complete(trial_id, result, error)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: what is known is read from the store's manifests."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: see `save`."""


class GroupedASHA(FIFOScheduler):
    """ASHA (Li et al., 2020) among the trials of one group, which is named in their configuration."""

    def __init__(self, epochs: int) -> None:
        super().__init__()
        self._schedulers: dict[str, AsyncHyperBandScheduler] = defaultdict(self._create(epochs))

    @staticmethod
    def _create(epochs: int) -> Callable[[], AsyncHyperBandScheduler]:
        return lambda: AsyncHyperBandScheduler(
            time_attr="epoch", metric="top1", mode="max", max_t=max(1, epochs), grace_period=max(1, epochs // 8)
        )

    def _of(self, trial: Trial) -> AsyncHyperBandScheduler:
        return self._schedulers[trial.config["group"]]

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        self._of(trial).on_trial_add(tune_controller, trial)

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        if result.get("epoch", 0) <= 0 or result.get("finished"):  # the untuned model; a published descendant
            return TrialScheduler.CONTINUE
        decision = self._of(trial).on_trial_result(tune_controller, trial, result)
        # At the last epoch ASHA stops a trial because it is done: let it publish.
        return TrialScheduler.CONTINUE if result["epoch"] >= result["epochs"] else decision

    def on_trial_complete(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> None:
        if result.get("epoch", 0) > 0:
            self._of(trial).on_trial_complete(tune_controller, trial, result)

    def on_trial_remove(self, tune_controller: Any, trial: Trial) -> None:
        self._of(trial).on_trial_remove(tune_controller, trial)

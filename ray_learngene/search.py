"""Learning-rate search and early stopping inside each descendant's own group of trials.

Ray Tune compares all trials of an experiment with each other. In a sweep a small descendant must not lose to a large
one, so the search (Optuna) and the scheduler (ASHA) are kept once per group: same arm, same spec, same seed.
"""

from __future__ import annotations

from collections import Counter, defaultdict
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
from ray_learngene.trials import Known, Trial

DRAWN = 10  # learning rates of a group until Optuna's model of their scores takes over from random draws


def at_random(left: Sequence[Trial], known: Known) -> tuple[list[Trial], list[Trial]]:
    """Split trials into those whose learning rate is drawn at random, and those where it follows from results.

    Those of the first kind can be trained side by side.

    Args:
        known: What was tried before.
    """
    tried = Counter({group: len(scores) for group, scores in known.items()})
    drawn, following = list[Trial](), list[Trial]()
    for trial in left:
        (drawn if tried[trial.group] < DRAWN else following).append(trial)
        tried[trial.group] += 1
    return drawn, following


class LearningRateSearch(Searcher):
    """One Optuna study over the learning rate per group.

    Args:
        packs: Trials that one process trains, still without their learning rates, in the order in which they shall
            start.
        known: What was tried before: a sweep that is run again goes on from there.
    """

    def __init__(self, packs: Sequence[Sequence[Trial]], known: Known, config: SweepConfig) -> None:
        super().__init__(metric="top1", mode="max")
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._packs = list(packs)
        self._studies: dict[Any, OptunaSearch] = {}
        self._running: dict[str, dict[int, OptunaSearch]] = {}  # by Tune's trial and member of its pack
        for group in dict.fromkeys(trial.group for pack in packs for trial in pack):
            # a search that goes on must not draw again what it drew before
            seed = int(np.random.SeedSequence([config.seed, len(known[group])]).generate_state(1)[0])
            sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=DRAWN)
            space = {"lr": tune.loguniform(config.lr_low, config.lr_high)}
            study = OptunaSearch(space, metric="top1", mode="max", sampler=sampler)
            for lr, score in known[group]:
                study.add_evaluated_point({"lr": lr}, score)
            self._studies[group] = study

    def suggest(self, trial_id: str) -> Any:
        if not self._packs:
            return Searcher.FINISHED
        pack: list[Trial] = []
        self._running[trial_id] = {}
        for member, trial in enumerate(self._packs.pop(0)):
            study = self._running[trial_id][member] = self._studies[trial.group]
            suggestion = study.suggest(f"{trial_id}-{member}") or {}
            pack.append(replace(trial, lr=suggestion["lr"]))
        return {"pack": pack}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        if result.get("finished") or result.get("error"):
            self._tell(trial_id, result["member"], result)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        last = result or {}
        for member in list(self._running[trial_id]):
            self._tell(trial_id, member, last if last.get("member") == member else None)

    def _tell(self, trial_id: str, member: int, result: dict[str, Any] | None) -> None:
        study = self._running[trial_id].pop(member, None)
        if study is not None:  # else it was told before
            study.on_trial_complete(f"{trial_id}-{member}", result, error=result is None)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: what is known is read from the store's manifests."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: see `save`."""


class GroupedASHA(FIFOScheduler):
    """ASHA (Li et al., 2020) among the trials of one group, each the only one of its pack."""

    def __init__(self, epochs: int) -> None:
        super().__init__()
        self._schedulers: dict[Any, AsyncHyperBandScheduler] = defaultdict(self._create(epochs))

    @staticmethod
    def _create(epochs: int) -> Callable[[], AsyncHyperBandScheduler]:
        return lambda: AsyncHyperBandScheduler(
            time_attr="epoch", metric="top1", mode="max", max_t=max(1, epochs), grace_period=max(1, epochs // 8)
        )

    def _of(self, trial: TuneTrial) -> AsyncHyperBandScheduler:
        return self._schedulers[trial.config["pack"][0].group]

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

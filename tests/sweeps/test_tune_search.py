"""Which learning rates are tried: random draws first, side by side or not, and then those of a plain Optuna study."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.trial import TrialState

from ray_learngene.config import SweepConfig
from ray_learngene.models.specs import PRESETS
from ray_learngene.sweeps.arms import Arm
from ray_learngene.sweeps.learning_rates import DRAWN, drawn_and_following, drawn_rates
from ray_learngene.sweeps.trial import Known, Trial
from ray_learngene.sweeps.trials import Outcomes
from ray_learngene.sweeps.tune_search import LearningRateSearch

CONFIG = SweepConfig(data="digits", name="s", learngene="g", lr_search=DRAWN + 3, lr_low=1e-5, lr_high=1e-1)
SMALL, LARGE = (Trial(Arm.parse("sws", "g"), PRESETS["nano"].replace(depth=depth), 0, CONFIG.lr) for depth in (2, 3))
DRAWN_TRIALS = [replace(trial, lr=lr) for lr in drawn_rates(CONFIG) for trial in (LARGE, SMALL)]


def score(lr: float) -> float:
    return -abs(np.log10(lr) + 3)


def searched(packs: Sequence[Sequence[Trial]], following: Sequence[Trial], known: Known) -> dict[object, list[float]]:
    """Every group's learning rates, where the packs run one after another and each member reports what it ends with."""
    search = LearningRateSearch(packs, following, known, CONFIG)
    tried: dict[object, list[float]] = {SMALL.group: [], LARGE.group: []}
    for number in range(len(packs) + len(following)):
        pack: list[Trial] = search.suggest(f"t{number}")["pack"]
        for member, trial in enumerate(pack):
            tried[trial.group].append(trial.lr)
            search.on_trial_result(f"t{number}", {"member": member, "top1": 0.0, "epoch": 0})  # not its end
            result = {"member": member, "top1": score(trial.lr), "finished": True}
            search.on_trial_result(f"t{number}", result)
        search.on_trial_complete(f"t{number}", result)
    assert search.suggest("none") == search.FINISHED
    return tried


def optunas(known: Sequence[tuple[float, float]], before: Sequence[float], count: int) -> list[float]:
    """Return what a plain study of one group chooses after known learning rates and sampled ones."""
    seed = int(np.random.SeedSequence([CONFIG.seed, len(known)]).generate_state(1)[0])
    sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=DRAWN)
    study = optuna.create_study(sampler=sampler, direction="maximize")
    space = optuna.distributions.FloatDistribution(CONFIG.lr_low, CONFIG.lr_high, log=True)
    for lr, value in [*known, *((lr, score(lr)) for lr in before)]:
        study.add_trial(optuna.create_trial(params={"lr": lr}, distributions={"lr": space}, value=value))
    chosen = []
    for _ in range(count):
        trial = study.ask({"lr": space})
        chosen.append(trial.params["lr"])
        study.tell(trial, score(chosen[-1]))
    return chosen


def test_the_first_learning_rates_are_those_of_any_longer_search_and_of_the_seed() -> None:
    rates = drawn_rates(CONFIG)
    assert len(set(rates)) == DRAWN and all(CONFIG.lr_low <= lr <= CONFIG.lr_high for lr in rates)
    assert drawn_rates(CONFIG.model_copy(update={"lr_search": 4})) == rates[:4]
    assert not set(drawn_rates(CONFIG.model_copy(update={"seed": 1}))) & set(rates)


def test_a_search_that_goes_on_asks_for_what_is_left_of_it() -> None:
    known: Known = {SMALL.group: [(trial.lr, 1.0) for trial in DRAWN_TRIALS[1::2]] + [(2e-3, 1.0)], LARGE.group: []}
    drawn, following = drawn_and_following([LARGE, SMALL], known, [DRAWN_TRIALS[0]], CONFIG)
    assert drawn == DRAWN_TRIALS, "those that are known have the names of what is in the store"
    assert following == [LARGE, LARGE, SMALL, LARGE, SMALL]
    begun = replace(SMALL, lr=3e-3)
    again, following = drawn_and_following([LARGE, SMALL], known, [begun], CONFIG)
    assert again == [begun, *DRAWN_TRIALS] and following == [LARGE, LARGE, LARGE, SMALL]
    for change in ({"lr_high": 2.5e-3}, {"lr_low": 4e-3}, {"lr_search": 3}):  # it is none of this search's
        settings = CONFIG.model_copy(update=change)
        assert begun not in drawn_and_following([LARGE, SMALL], known, [begun], settings)[0]
    fresh, onwards = (
        searched([[trial] for trial in some], [SMALL], {SMALL.group: known[SMALL.group], LARGE.group: []})[SMALL.group]
        for some in ([], [begun])
    )
    assert onwards[0] == begun.lr and onwards[1] != fresh[0], "not what the interrupted search chose"


@given(size=st.integers(min_value=1, max_value=2 * DRAWN), done=st.integers(min_value=0, max_value=2 * DRAWN))
def test_learning_rates_after_them_are_those_of_a_plain_study_however_the_first_were_packed(
    size: int, done: int
) -> None:
    known: Known = {SMALL.group: [], LARGE.group: []}
    for trial in DRAWN_TRIALS[:done]:
        known[trial.group].append((trial.lr, score(trial.lr)))
    left = DRAWN_TRIALS[done:]
    packs = [left[first : first + size] for first in range(0, len(left), size)]
    found = searched(packs, [LARGE, SMALL] * 3, known)
    for group, scores in known.items():
        drawn = [trial.lr for trial in left if trial.group == group]
        assert found[group] == drawn + optunas(scores, drawn, 3)


def test_scores_of_a_narrower_search_are_left_out() -> None:
    known: Known = {SMALL.group: [(1e-7, 3.0), (1e-3, 2.0)]}
    search = LearningRateSearch([], [SMALL], known, CONFIG)
    assert CONFIG.lr_low <= search.suggest("a")["pack"][0].lr <= CONFIG.lr_high


@pytest.mark.parametrize("following", [False, True])
def test_what_becomes_of_a_trial_is_told_once(following: bool) -> None:
    """Finished; failed, which is the worst there is; stopped by ASHA; ended without a word."""
    count = 4
    packs = [[]] if following else [[trial] for trial in DRAWN_TRIALS[1 : 2 * count : 2]]
    search = LearningRateSearch(
        [] if following else packs, [SMALL] * count if following else [], {SMALL.group: []}, CONFIG
    )
    for number in range(count):
        search.suggest(f"t{number}")
    finished = {"member": 0, "top1": 50.0, "finished": True}
    search.on_trial_result("t0", finished)
    search.on_trial_complete("t0", finished)
    search.on_trial_result("t1", {"member": 0, "top1": float("-inf"), "error": "not finite"})
    search.on_trial_complete("t1", {"member": 0, "top1": float("-inf")})
    search.on_trial_result("t2", {"member": 0, "top1": 20.0, "epoch": 1})
    search.on_trial_complete("t2", {"member": 0, "top1": 30.0, "epoch": 2})  # of which Tune tells nothing else
    search.on_trial_complete("t3", None, error=True)
    trials = search._studies[SMALL.group]._ot_study.trials
    values = [trial.value for trial in trials if trial.state is TrialState.COMPLETE]
    assert values == [50.0, float("-inf"), 30.0]
    assert [trial.state for trial in trials[3:]] == ([TrialState.FAIL] if following else [])


def test_trials_whose_learning_rates_follow_are_counted_and_shown() -> None:
    inputs: Any = SimpleNamespace(config=CONFIG, work=lambda trial: float(trial.spec.depth))
    outcomes = Outcomes(inputs, [SMALL, SMALL, LARGE], keep=lambda row: None)
    assert outcomes.status._all.total == 7
    for lr in (2e-3, 3e-3):
        outcomes.reported(replace(SMALL, lr=lr), {"step": 1, "epoch": 1, "epochs": 2, "total_steps": 2, "top1": 50.0})
        outcomes.status.end(replace(SMALL, lr=lr))
    outcomes.status.end(LARGE)
    assert outcomes.status._all.done == 4, "the last one ends the bar"

"""Which learning rates are tried: Optuna's, whoever is trained beside whom."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_learngene.config import SweepConfig
from ray_learngene.search import DRAWN, LearningRateSearch, at_random
from ray_learngene.specs import PRESETS
from ray_learngene.trials import Known, Trial

CONFIG = SweepConfig(data="digits", name="s", learngene="g", lr_search=DRAWN + 2, lr_low=1e-5, lr_high=1e-1)
SMALL, LARGE = (Trial("sws", PRESETS["nano"].replace(depth=depth), 0, CONFIG.lr) for depth in (2, 3))


def score(lr: float) -> float:
    return -abs(np.log10(lr) + 3)


def searched(packs: list[list[Trial]], known: Known) -> dict[Any, list[float]]:
    """Every group's learning rates, where the packs run one after another and each member reports what it ends with."""
    search = LearningRateSearch(packs, known, CONFIG)
    tried = defaultdict(list)
    for number in range(len(packs)):
        pack: list[Trial] = search.suggest(f"t{number}")["pack"]
        for member, trial in enumerate(pack):
            tried[trial.group].append(trial.lr)
            search.on_trial_result(f"t{number}", {"member": member, "top1": 0.0, "epoch": 0})  # not its end
            result = {"member": member, "top1": score(trial.lr), "finished": True}
            search.on_trial_result(f"t{number}", result)
        search.on_trial_complete(f"t{number}", result)
    assert search.suggest("none") == search.FINISHED
    return dict(tried)


def optunas(known: list[tuple[float, float]], count: int) -> list[float]:
    """A plain study of one group."""
    seed = int(np.random.SeedSequence([CONFIG.seed, len(known)]).generate_state(1)[0])
    study = optuna.create_study(
        sampler=optuna.samplers.TPESampler(seed=seed, n_startup_trials=DRAWN), direction="maximize"
    )
    space = optuna.distributions.FloatDistribution(CONFIG.lr_low, CONFIG.lr_high, log=True)
    for lr, value in known:
        study.add_trial(optuna.create_trial(params={"lr": lr}, distributions={"lr": space}, value=value))
    drawn = []
    for _ in range(count):
        trial = study.ask({"lr": space})
        drawn.append(trial.params["lr"])
        study.tell(trial, score(drawn[-1]))
    return drawn


@pytest.mark.parametrize("tried", [0, 4, DRAWN + 1])
def test_learning_rates_are_those_of_a_plain_study_alone_and_side_by_side(tried: int) -> None:
    known = {SMALL.group: [(lr, score(lr)) for lr in np.geomspace(2e-5, 5e-2, tried).tolist()], LARGE.group: []}
    left = [LARGE, SMALL] * (DRAWN + 2)
    drawn, following = at_random(left, known)
    assert drawn.count(SMALL) == max(0, DRAWN - tried) and drawn.count(LARGE) == DRAWN
    assert sorted([*drawn, *following], key=left.index) == sorted(left, key=left.index)
    expected = {LARGE.group: optunas([], DRAWN + 2), SMALL.group: optunas(known[SMALL.group], DRAWN + 2)}
    assert searched([[trial] for trial in drawn + following], known) == expected
    assert searched([drawn, *([trial] for trial in following)], known) == expected


@given(st.integers(min_value=1, max_value=2 * DRAWN))
def test_random_draws_do_not_depend_on_how_they_are_packed(size: int) -> None:
    left = [LARGE, SMALL] * DRAWN
    packs = [left[first : first + size] for first in range(0, len(left), size)]
    known: Known = {LARGE.group: [], SMALL.group: []}
    assert searched(packs, known) == searched([left], known)


def test_a_member_that_ends_without_a_score_is_no_result() -> None:
    """Its process died for good: the search goes on as if it had not been asked."""
    known: Known = {SMALL.group: [(lr, score(lr)) for lr in np.geomspace(2e-5, 5e-2, DRAWN).tolist()]}
    search = LearningRateSearch([[SMALL, SMALL], [SMALL]], known, CONFIG)
    first = search.suggest("a")["pack"]
    search.on_trial_result("a", {"member": 0, "top1": score(first[0].lr), "finished": True})
    search.on_trial_complete("a", None, error=True)
    assert CONFIG.lr_low <= search.suggest("b")["pack"][0].lr <= CONFIG.lr_high

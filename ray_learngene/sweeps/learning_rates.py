"""Sample the first learning rates of a search."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ray_learngene.config import SweepConfig
from ray_learngene.sweeps.trial import Known, Trial

DRAWN = 10  # learning rates of a descendant until Optuna's model of their scores takes over


def drawn_rates(config: SweepConfig) -> list[float]:
    """Return the first learning rates of every group, drawn at random: they depend on the settings alone.

    So trials of them can be side by side, and a sweep that is run again goes on with those that it had begun.
    """
    low, high = np.log([config.lr_low, config.lr_high])
    drawn = np.random.default_rng(config.seed).uniform(low, high, DRAWN)
    return np.exp(drawn).tolist()[: config.lr_search]


def drawn_and_following(
    wanted: Sequence[Trial], known: Known, begun: Sequence[Trial], config: SweepConfig
) -> tuple[list[Trial], list[Trial]]:
    """Return the trials of a search: all whose learning rates are there, and those left whose learning rates follow.

    Args:
        known: What earlier runs tried.
        begun: What they left with a checkpoint; it goes on where its learning rate is one of this search's.
    """
    rates = drawn_rates(config)
    followed = {group: sum(lr not in rates for lr, _ in scores) for group, scores in known.items()}
    going_on = []
    for trial in begun:
        within = config.lr_low <= trial.lr <= config.lr_high and followed[trial.group] < config.lr_search - DRAWN
        if trial.lr not in rates and within:
            going_on.append(trial)
            followed[trial.group] += 1
    return [*going_on, *(replace(trial, lr=lr) for lr in rates for trial in wanted)], [
        trial for turn in range(config.lr_search - DRAWN) for trial in wanted if turn >= followed[trial.group]
    ]

"""Siblings on a node that is low on memory: Ray's own monitor ends their process, and fewer of them start again.

pytest -m hosts tests/sweeps/test_low_memory.py     a minute; Ray is told that almost no memory may be used
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ray_learngene.errors import UserError
from ray_learngene.sweeps import tune_callbacks
from ray_learngene.sweeps.sweep import sweep
from tests.sweeps.test_descendant import inputs

pytestmark = pytest.mark.hosts


def test_half_as_many_start_again_where_memory_was_too_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    monkeypatch.setenv("RAY_memory_usage_threshold", "0.01")
    monkeypatch.setenv("RAY_memory_monitor_refresh_ms", "3000")
    at_once: list[int] = []

    class Recovering(tune_callbacks.SweepProgress):
        def on_trial_recover(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            super().on_trial_recover(iteration, trials, trial, **info)
            at_once.append(trial.config["one"]["at_once"])

    monkeypatch.setattr(tune_callbacks, "SweepProgress", Recovering)
    config = inputs(tmp_path / "store")[0].model_copy(update={"depths": "1,2", "siblings": 4, "max_failures": 2})
    ray.init("local", num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        with pytest.raises(UserError, match="4 of 4 descendants failed: its node was low on memory"):
            sweep(config)
    finally:
        ray.shutdown()
    assert at_once == [2, 1]

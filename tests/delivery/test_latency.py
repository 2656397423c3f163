"""The latency of sizes in eager torch, as plans, sweeps and `expand --max-latency` measure it."""

from __future__ import annotations

import torch

from ray_learngene.delivery import measure as clock
from ray_learngene.delivery.latency import measure_latency
from ray_learngene.models.specs import PRESETS
from ray_learngene.store.rows import measured_on
from ray_learngene.sweeps.selection import latency_columns


def test_one_thread_of_a_cpu_is_timed_in_cpu_time_and_said_so() -> None:
    latency = measure_latency(PRESETS["nano"].replace(depth=1), batch=2)
    assert 0 < latency.median_ms <= latency.p90_ms and latency.runs >= clock.LEAST_ROUNDS
    assert latency.clock == "cpu" and latency.wall_ms and latency.spread >= 1
    row = latency_columns(latency)
    assert row["latency"] == latency.median_ms and row["latency_wall"] == latency.wall_ms
    assert measured_on(row) == f"cpu {clock.cpu_name()}, batch 2, float32, 1 thread, CPU time"
    assert measured_on({**row, "latency_clock": "wall"}) == measured_on({**row, "latency_clock": None})  # old rows


def test_several_threads_are_timed_by_the_clock() -> None:
    threads = torch.get_num_threads()
    latency = measure_latency(PRESETS["nano"].replace(depth=1), threads=2)
    assert (latency.clock, latency.threads) == ("wall", 2) and latency.median_ms == latency.wall_ms
    assert torch.get_num_threads() == threads

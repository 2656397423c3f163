"""A benchmark whose distillations are tasks of real Ray, and whose driver is asked to end."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.util.queue import Queue

from ray_learngene import sigterm
from ray_learngene.cluster.preemption import watching
from ray_learngene.cluster.session import ray_cluster
from ray_learngene.config import DistillConfig
from ray_learngene.store.store import Store
from tests.ray_jobs.conftest import QUICK


@pytest.mark.slow
def test_ctrl_c_to_the_driver_leaves_a_checkpoint_of_what_runs(
    learngene: DistillConfig, ancestry: str, head: tuple[str, str], tmp_path: Path
) -> None:
    settings: dict[str, Any] = {
        **{name: value for name, value in QUICK.items() if name != "lr"},
        "store": learngene.store,
        "ancestry": ancestry,
        "preset": "nano",
        "depth": 3,
        "depths": "2",
        "arms": {
            "any-size": {"method": "any-size:shallowest=1", "epochs": 16},
            "scratch": {"method": "scratch", "tune": "full"},
        },
        "seeds": 2,
        "epochs": 1,
        "tune_epochs": 1,
        "lrs": (4e-3,),
        "tune_lrs": (1e-3,),
        "max_failures": 0,
        "cpus_per_trial": 1.5,  # of two: one after another, on one thread each
        "out": str(tmp_path / "out"),
        "address": head[0],
        "track": [f"tensorboard:{tmp_path}/board"],
    }
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps(settings))
    command = [sys.executable, "-m", "ray_learngene", "bench", "--config", str(recipe), "--name", "ended"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stderr is not None
    if not any(line.startswith("[1/2] distil ") for line in process.stdout):
        pytest.fail(process.stderr.read())
    store, name = Store(learngene.store), "ended-any-size-lr0.004"
    state = f"learngene-{name}-s1/state"
    while not store.exists("checkpoint", state):  # of its first epoch: before its first step nothing is kept
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    said = process.stderr.read()
    assert process.wait() == 130, said
    assert said.splitlines()[-1].startswith("learngene: interrupted after 1 of 2 distillations;"), said
    process.stdout.close()
    assert store.exists("learngene", f"{name}-s0") and not store.exists("learngene", f"{name}-s1")
    folder = store.download("checkpoint", state, tmp_path / "checkpoint")
    assert 11 <= json.loads((folder / "progress.json").read_text())["step"] < 16 * 11
    runs = tmp_path / "board/learngenes"  # written by the driver; workers may run on other hosts
    assert {path.name for path in runs.iterdir()} == {f"{name}-s0", f"{name}-s1"}


def test_a_task_heeds_what_the_driver_was_asked_before_its_first_step_and_keeps_its_cpu(head: tuple[str, str]) -> None:
    class Noting(Queue):
        """Notes whether a main thread waited for Ray: a task's would give up its CPU meanwhile, to a task too many."""

        asked_by_main = False

        def empty(self) -> bool:
            self.asked_by_main |= threading.current_thread() is threading.main_thread()
            return bool(super().empty())

    @ray.remote
    def task(requests: Noting) -> tuple[bool, bool]:
        with watching(requests):
            return sigterm.requested(), requests.asked_by_main

    with ray_cluster(head[0]):
        requests = Noting(actor_options={"num_cpus": 0})
        assert ray.get(task.remote(requests)) == (False, False)
        requests.put("SIGTERM")
        assert ray.get(task.remote(requests)) == (True, False)

"""The runner of the proof: what it skips, what it records, and how it passes SIGTERM on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from benchmarks.proof import run as runner
from benchmarks.proof.commands import Interrupted, Places, run_command
from benchmarks.proof.plan import Plan, Run

PLAN = """
base: {width: 8, heads: 1, patch: 4, depth: 2, image: 8}
images: {check_images: "off"}
settings: {batch_size: 512, warmup_epochs: 0}
teacher: {}
search: {seed: 100, depths: [1, 2], lrs: [0.01], factor: 2, limits: [0.01, 0.01], split: {validate_on: holdout}}
steps:
  - {data: digits, arm: scratch, search: 1}
  - {data: digits, arm: scratch, epochs: 2, depths: [1, 2], seeds: [0]}
"""


@pytest.fixture
def flags(tmp_path: Path) -> list[str]:
    (tmp_path / "plan.yaml").write_text(PLAN)
    places = {
        "store": tmp_path / "store",
        "data-dir": tmp_path,
        "rows": tmp_path / "rows",
        "plan": tmp_path / "plan.yaml",
    }
    return [word for name, path in places.items() for word in (f"--{name}", str(path))]


def rows(tmp_path: Path) -> list[dict[str, Any]]:
    return runner.read_rows(tmp_path / "rows")


def test_finished_runs_are_not_trained_again(tmp_path: Path, flags: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[Run] = []

    def train(plan: Plan, runs: Sequence[Run], places: Places) -> list[dict[str, Any]]:
        trained.extend(runs)
        if len(trained) > 2:
            raise Interrupted
        return [{"key": plan.key(run), **asdict(run), "top1": 1.0} for run in runs]

    monkeypatch.setattr(runner, "train", train)
    with pytest.raises(SystemExit, match="goes on from the last checkpoint"):
        runner.main(flags)
    assert [(run.depth, run.searching) for run in trained] == [(1, True), (2, True), (1, False), (2, False)]
    trained.clear()
    runner.main(flags)
    assert [(run.depth, run.searching) for run in trained] == [(1, False), (2, False)]
    assert [row["epochs"] for row in rows(tmp_path)] == [1, 1, 2, 2]


@pytest.mark.slow
def test_a_search_is_trained_by_the_command_line(tmp_path: Path, flags: list[str]) -> None:
    (tmp_path / "plan.yaml").write_text(PLAN[: PLAN.rindex("  - {")])
    runner.main(flags)
    table = rows(tmp_path)
    assert [(row["depth"], row["epochs"], row["status"]) for row in table] == [(1, 1, "finished"), (2, 1, "finished")]
    for row in table:
        assert row["flops"] == 6 * row["macs"] * row["images"]
        assert 0 < row["cpu_seconds"] <= row["sweep"]["cpu_seconds"]
        assert row["sweep"]["models"] == 2
        assert len(row["load"]) == 2


def test_costs_of_attempts_add_up(tmp_path: Path) -> None:
    tally = tmp_path / "tallies" / "command.json"
    first = run_command(["-c", "sum(range(3_000_000))"], tally)
    second = run_command(["-c", "pass"], tally)
    assert 0 < first["cpu_seconds"] < second["cpu_seconds"]
    assert second == json.loads(tally.read_text())
    with pytest.raises(subprocess.CalledProcessError):
        run_command(["-c", "raise SystemExit(3)"], tally)


def test_sigterm_reaches_the_command(tmp_path: Path) -> None:
    """The command answers SIGTERM by writing a file, as the product writes its checkpoint."""
    begun, ended = tmp_path / "begun", tmp_path / "ended"
    program = (
        "import pathlib, signal, time\n"
        f"def end(*_): pathlib.Path({str(ended)!r}).touch(); raise SystemExit(143)\n"
        "signal.signal(signal.SIGTERM, end)\n"
        f"pathlib.Path({str(begun)!r}).touch()\n"
        "time.sleep(600)"
    )

    def terminate() -> None:
        while not begun.exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=terminate).start()
    with pytest.raises(Interrupted):
        run_command(["-c", program], tmp_path / "tally.json")
    assert ended.exists()

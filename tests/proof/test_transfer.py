"""The proof's transfer: which runs are next, the sweep that trains them, and the table."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from benchmarks.proof import transfer
from benchmarks.proof.commands import Places, base_commands, base_name
from benchmarks.proof.plan import Plan
from benchmarks.proof.run import read_rows
from benchmarks.proof.transfer import Run, Transfer
from benchmarks.proof.transfer_table import transfer_lines
from ray_learngene.cli.flags import parser_of
from ray_learngene.cli.main import main
from ray_learngene.config import SweepConfig
from tests.proof.test_run import PLAN

TEXT = """
base: base-digits-w8
depth: 2
seeds: [0, 1]
arms: {scratch: scratch, missing: sws@missing}
search: {seed: 100, lrs: [1, 2], factor: 2, limits: [1, 4], split: {validate_on: holdout, holdout: 0.2}}
images: {check_images: "off"}
settings: {batch_size: 512, warmup_epochs: 0}
sets:
  digits: {data: digits, epochs: 2}
  other: {folder: other, epochs: 4}
"""


def row(run: Run, top1: float) -> dict[str, Any]:
    return {"key": Transfer(TEXT).key(run), **asdict(run), "top1": top1}


def test_a_search_extends_at_its_border_and_decides_the_rate() -> None:
    plan = Transfer(TEXT)
    assert plan.runs("digits", ["scratch"], []) == [Run("digits", "scratch", 100, lr, True) for lr in (1, 2)]
    rows = [row(Run("digits", "scratch", 100, lr, True), 10 * lr) for lr in (1, 2)]
    assert plan.runs("digits", ["scratch"], rows) == [Run("digits", "scratch", 100, 4, True)]
    rows.append(row(Run("digits", "scratch", 100, 4, True), 5))
    final = [Run("digits", "scratch", seed, 2, False) for seed in (0, 1)]
    assert plan.runs("digits", ["scratch"], rows) == final
    assert plan.runs("digits", ["scratch"], [*rows, *(row(run, 50) for run in final)]) == []


def test_the_sweep_of_a_folder_searches_on_training_images() -> None:
    plan = Transfer(TEXT)
    runs = plan.runs("other", ["scratch", "missing"], [])[:1]
    line = " ".join(plan.command(runs, Path("store"), Path("sets")))
    assert "--data sets/other --learngene base-digits-w8 --arms scratch --scratch epochs --depths 2 --epochs 2 " in line
    assert "--validate-on holdout" in line and "--seeds 1" in line


def test_arms_are_tuned_by_the_command_line_and_those_without_a_learngene_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The commands run in this process, which saves the start of four."""

    def command(line: list[str], tally: Path | None = None) -> None:
        assert main(line[2:]) == 0

    monkeypatch.setattr(transfer, "run_command", command)
    places = Places(tmp_path / "store", tmp_path)
    for line in base_commands(Plan(PLAN), "digits", places):
        command(line)
    assert base_name(Plan(PLAN), "digits") == "base-digits-w8"
    text = TEXT.replace("lrs: [1, 2]", "lrs: [0.01]").replace("limits: [1, 4]", "limits: [0.01, 0.01]")
    (tmp_path / "plan.yaml").write_text(text[: text.index("  other:")])
    flags = {"store": places.store, "sets": tmp_path, "rows": tmp_path / "rows", "plan": tmp_path / "plan.yaml"}
    transfer.main([word for name, value in flags.items() for word in (f"--{name}", str(value))])
    rows = read_rows(tmp_path / "rows")
    assert [(each["arm"], each["seed"], each["searching"]) for each in rows] == [
        ("scratch", 100, True), ("scratch", 0, False), ("scratch", 1, False),
    ]  # fmt: skip
    assert all(each["top1"] is not None and each["steps"] > 0 for each in rows)


def test_the_table_pairs_arms_over_seeds_and_leaves_out_unfinished_ones() -> None:
    scores = {
        "scratch": {"digits": (50, 52), "other": (60, 62), "cifar10-1": (20, 20)},
        "gene": {"digits": (54, 56), "other": (61, 67), "cifar10-1": (70, 80)},
        "begun": {"digits": (90, 90)},
    }
    rows = [
        {**asdict(Run(name, arm, seed, 1, False)), "top1": top1}
        for arm, sets in scores.items()
        for name, both in sets.items()
        for seed, top1 in enumerate(both)
    ]
    lines = transfer_lines(rows)
    assert lines[0] == "| arm | digits | other | cifar10-1 | gain over scratch |"
    assert lines[2] == "| scratch | 51.0 | 61.0 | 20.0 |  |"
    # 2.5 and 4.5 points with the seeds: 3.5, and 12.706 standard errors of 1; learngenes were made from cifar10
    assert lines[3:] == ["| gene | 55.0 | 64.0 | 75.0 | +3.5 ± 12.7 |"]
    assert transfer_lines([]) == []


@pytest.mark.parametrize("name", list(Transfer(transfer.PLAN.read_text()).sets))
def test_the_plans_flags_are_the_products(name: str) -> None:
    plan = Transfer(transfer.PLAN.read_text())
    line = plan.command(plan.runs(name, list(plan.arms)[:2], [])[:2], Path("s"), Path("d"))
    parser_of("sweep", SweepConfig).parse_args(line[3:])

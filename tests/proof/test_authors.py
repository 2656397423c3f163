"""Ours against the authors' SWS program: its command lines and the table, without its code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.proof import authors
from benchmarks.proof.authors_table import lines
from benchmarks.proof.charges import Charges

CHARGES = Charges(
    {"authors' auxiliary": 100, "authors' depth 6": 40, "authors' depth 15": 80, "loader": 10, "any-size": 40,
     "untied": 60, "teacher forward": 5, "depth 6": 30, "depth 15": 70},
    batch=100,
)  # fmt: skip
TEACHER = {"cost": {"flops": 3e12, "images": 1e6, "steps": 1}}  # a forward pass: 1e6 FLOPs
SETTINGS: dict[str, Any] = {
    "size": {"depth": 16, "width": 24},
    "flags": {"batch-size": 128, "aa": ""},
    "switches": ["--no-model-ema"],
    "distill": {"model": "bench_auxiliary"},
    "tune": {"model": "bench_descendant"},
}
RUN = {"seed": 0, "distill": {"epochs": 2, "lr": 0.1}, "tune": {"epochs": 1, "lr": 0.2}, "depths": [6, 15]}


def theirs(depth: int, top1: float, **changes: Any) -> dict[str, Any]:
    made = {"cost": {"steps": 1000, "flops": 2e12, "teacher_flops": 1e12}, "cpu_seconds": 200.0}
    row = {
        "arm": "authors",
        "depth": depth,
        "seed": 0,
        "epochs": 50,
        "lr": 0.1,
        "searching": False,
        "top1": top1,
        "steps": 100,
    }
    return {**row, "flops": 1e11, "cpu_seconds": 10.0, "learngene": made, "teacher": TEACHER, **changes}


def ours(depth: int, top1: float, **changes: Any) -> dict[str, Any]:
    first = {"arm": "any-size", "cost": {"steps": 100, "flops": 2e11, "teacher_flops": 1e9}, "cpu_seconds": 8.0}
    made = {"arm": "untied", "cost": {"steps": 200, "flops": 3e11, "teacher_flops": 0}, "cpu_seconds": 14.0}
    row = {**theirs(depth, top1), "arm": "untied", "epochs": 10, "steps": 0, "flops": 0, "teacher_flops": 0}
    return {**row, "learngene": {**made, "start": first}, "sweep": {"models": 2, "cpu_seconds": 3.0}, **changes}


def test_the_table_has_the_accuracies_and_what_all_sizes_cost() -> None:
    """Theirs: 1000 * 0.1 + 100 * (0.04 + 0.08) = 112 s. Ours: 100 * 0.05 + 200 * 0.07 + 0.05 = 19.05 s."""
    rows = [ours(6, 50.0), ours(15, 51.0), theirs(6, 49.0), theirs(15, 51.5), ours(6, 9.0, searching=True)]
    rows.append(theirs(6, 60.0, lr=0.3))  # its other size is not finished
    rows += [theirs(depth, 30.0, lr=0.2) for depth in (6, 15)]  # a worse rate is shown, and compared with nothing
    assert lines(rows, CHARGES)[2:] == [
        "| authors' program, rate 0.1, 50 epochs | 0 | 49.0 | 51.5 | 50.2 | +0.0 | 3.20 | 1.0 | 112 | 1.0 | 220 |",
        "| authors' program, rate 0.2, 50 epochs | 0 | 30.0 | 30.0 | 30.0 | -21.5 | 3.20 | 1.0 | 112 | 1.0 | 220 |",
        "| untied, 10 epochs | 0 | 50.0 | 51.0 | 50.5 | -0.5 | 0.50 | 6.4 | 19 | 5.9 | 25 |",
    ]


def test_tuned_models_of_a_sweep_share_the_loader() -> None:
    rows = [*(theirs(depth, 50.0) for depth in (6, 15)), *(ours(depth, 50.0, steps=100) for depth in (6, 15))]
    assert lines(rows, CHARGES)[-1].split(" | ")[-3:-1] == [f"{19.05 + 1 + 10:.0f}", f"{112 / 30.05:.1f}"]


@pytest.fixture
def program(tmp_path: Path) -> authors.Program:
    plan = authors.Plan(authors.PLAN.read_text())
    teacher = tmp_path / "ancestries" / "teacher-cifar10" / "1"
    teacher.mkdir(parents=True)
    (teacher / "config.json").touch()
    return authors.Program(plan, SETTINGS, RUN, authors.Places(tmp_path, tmp_path))


def jobs(program: authors.Program) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(program.line(Path("sws"))[-1])
    return found


def flag(job: dict[str, Any], name: str) -> Any:
    words = job["arguments"]
    return words[words.index(name) + 1] if name in words else None


def finish(program: authors.Program, depth: int | None, epochs: int) -> None:
    """Write what the release writes: a checkpoint and a line for each epoch; and the cost."""
    folder = program.folder(depth)
    folder.mkdir(parents=True)
    text = "".join(json.dumps({"epoch": epoch, "test_acc1": 50.0 + epoch}) + "\n" for epoch in range(epochs))
    (folder / "log.txt").write_text(text)
    (folder / "checkpoint.pth").touch()
    (folder / "cost.json").write_text('{"cpu_seconds": 1.0, "wall_seconds": 2.0}')


def test_every_size_is_tuned_from_one_distillation(program: authors.Program) -> None:
    first, shallow, _ = jobs(program)
    assert (flag(first, "--model"), flag(first, "--load-gene"), first["epochs"]) == ("bench_auxiliary", None, 2)
    assert flag(shallow, "--layers-source") == "0,0,1,2,3,4"
    assert flag(shallow, "--load-gene") == str(program.folder() / "checkpoint.pth")
    assert "--no-model-ema" in shallow["arguments"]


def test_what_is_trained_is_not_trained_again(program: authors.Program) -> None:
    finish(program, None, epochs=2)
    finish(program, 15, epochs=1)
    assert [job["depth"] for job in jobs(program)] == [6]
    assert program.top1(15) == 50.0
    assert program.cost(15)["steps"] == 50_000 * program.plan.images["train_share"] // 128


def test_an_interrupted_stage_goes_on_from_its_checkpoint(program: authors.Program) -> None:
    finish(program, None, epochs=2)
    finish(program, 6, epochs=0)
    assert flag(jobs(program)[0], "--resume") == str(program.folder(6) / "checkpoint.pth")
    assert flag(jobs(program)[0], "--load-gene") is None


def test_runs_of_one_distillation_share_its_auxiliary_model(program: authors.Program) -> None:
    slower = authors.Program(program.plan, SETTINGS, {**RUN, "tune": {"epochs": 1, "lr": 0.1}}, program.places)
    search = authors.Program(program.plan, SETTINGS, {**RUN, "searching": True}, program.places)
    assert slower.folder() == program.folder() != search.folder()
    assert slower.folder(6) != program.folder(6)

"""A learngene against the reference's front, on rows small enough to check by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest

from benchmarks.proof.against import Saving, against_front
from benchmarks.proof.charges import Charges
from benchmarks.proof.many_sizes import figure, lines, savings
from benchmarks.proof.overview import overview
from benchmarks.proof.report import made_once, report
from benchmarks.proof.table import table
from ray_learngene.compare.summary import Cost, cost

TEACHER = {"sha256": "t", "cost": {"flops": 8e12}, "cpu_seconds": 80.0}
LEARNGENE = {"sha256": "l", "name": "gene", "cost": {"flops": 3e12, "teacher_flops": 1e12}, "cpu_seconds": 40.0}


def row(depth: int, epochs: int, top1: float, flops: float, **changes: Any) -> dict[str, Any]:
    return {
        **{"data": "cifar10", "arm": "scratch", "width": 24, "depth": depth, "epochs": epochs, "seed": 0, "lr": 0.04},
        **{"searching": False, "status": "finished", "top1": top1, "top1_untuned": 10.0},
        **{"flops": flops, "teacher_flops": 0, "cpu_seconds": flops / 1e11, "learngene": None, "teacher": None},
        "sweep": {"models": 1},
        **changes,
    }


def gene(depth: int, top1: float, **changes: Any) -> dict[str, Any]:
    made = {"arm": "any-size", "top1_untuned": top1 - 1, "learngene": LEARNGENE, "teacher": TEACHER}
    return {**row(depth, 20, top1, 1e12), **made, **changes}


ROWS = [
    *(row(3, epochs, top1, epochs * 1e11) for epochs, top1 in ((20, 50.0), (40, 54.0))),
    *(row(12, epochs, top1, epochs * 4e11) for epochs, top1 in ((20, 53.0), (40, 59.0))),
    gene(3, 52.0),
    gene(12, 56.0),
]


def test_rows_become_the_table_of_a_benchmark() -> None:
    arm = table(ROWS, "cifar10").query("arm == 'any-size 20'")
    spent = cost(arm, "flops", ancestry=True)
    assert (spent.once, spent.each) == (12e12, 1e12)  # the teacher, the distillation and its teacher; tuning
    assert set(table(ROWS, "cifar10")["arm"]) == {"scratch", "scratch-x2", "any-size 20"}
    before = table(ROWS, "cifar10", untuned=True).query("arm == 'any-size 20'")
    assert (cost(before, "flops").each, list(before["top1"])) == (0.0, [51.0, 55.0])


def test_a_search_is_charged_to_the_runs_that_it_decides() -> None:
    search = [
        gene(depth, 40.0, epochs=10, searching=True, flops=0, learngene={**LEARNGENE, "name": f"search-{lr}"}, lr=lr)
        for lr in (0.02, 0.04)
        for depth in (3, 12)
    ]
    arm = table([*ROWS, *search], "cifar10").query("arm == 'any-size 20'")
    assert cost(arm, "flops").search == 8e12  # two distillations, each with its teacher's passes
    assert cost(table([*ROWS, *search], "cifar10").query("arm == 'scratch'"), "flops").search == 0


def test_the_reference_pays_along_its_front() -> None:
    """52 % lies half way between 50 and 54: the cost is the geometric mean of both schedules'."""
    lines = against_front(ROWS, "cifar10")
    assert "| 3 | 1 | 54.00 (x2) | 51.00 | 52.00 | -3.00 | -2.00 | 2.8 |" in lines
    assert "| 12 | 1 | 59.00 (x2) | 55.00 | 56.00 | -4.00 | -3.00 | 11.3 |" in lines
    reference = (2 * 4) ** 0.5 + (8 * 16) ** 0.5
    ten, whole = 5 * reference / 14, 5 * reference / 22
    assert f"| tuned | TFLOPs | 6 | {reference / 6:.2f} | {ten:.2f} | {whole:.2f} |" in lines


def test_each_size_distilled_alone_is_a_reference_too() -> None:
    """What it costs counts its own passes of the teacher."""
    alone = [
        row(depth, 20, top1, 2e12, arm="distilled", teacher=TEACHER, teacher_flops=5e11)
        for depth, top1 in ((3, 52.5), (12, 57.0))
    ]
    lines = against_front([*alone, *ROWS[4:]], "cifar10", reference="distilled")
    assert "### any-size 20 epochs against the front of distilled" in lines
    assert "| 3 | 1 | 52.50 (x1) | 51.00 | 52.00 | -1.50 | -0.50 | <2.5 |" in lines
    assert any(line.startswith("| untuned | TFLOPs | 4 | <1.25 ") for line in lines)
    together = report([*ROWS, *alone])
    assert together.index("against the front of scratch") < together.index("against the front of distilled")


def test_the_overview_pairs_an_arm_with_scratch_over_seeds() -> None:
    """Differences of 2 and 1 points, mean over two sizes: 1.5 ± 12.7 * 0.5 (Student's t for one degree of freedom)."""
    second = [row(3, 20, 51.0, 2e12, seed=1), row(12, 20, 54.0, 8e12, seed=1)]
    again = [gene(3, 52.0, seed=1), gene(12, 55.0, seed=1)]
    first = [gene(3, 52.0), gene(12, 55.0)]
    lines = overview([*ROWS[:4], *first, *second, *again], "cifar10", (3, 12))
    expected = "| any-size, 20 epochs, tuned | 52.0 | 55.0 | 53.5 | +1.5 ± 6.4 | 2 |"
    assert any(line.startswith(expected) for line in lines)


def test_what_cannot_be_compared_is_left_out() -> None:
    assert against_front(ROWS[4:], "cifar10") == []
    assert "### any-size 20 epochs" in report(ROWS)


def test_what_many_rows_share_is_counted_once() -> None:
    assert made_once(ROWS) == {"l": 40.0, "t": 80.0}
    own = sum(each["cpu_seconds"] for each in ROWS)
    assert report(ROWS).endswith(f"6 models, {(own + 120) / 3600:.2f} core-hours (CPU seconds of their processes).")


@pytest.mark.parametrize("bound", [("<", 49.0), (">", 70.0)])
def test_bounds_are_marked(bound: tuple[str, float]) -> None:
    lines = against_front([*ROWS[:4], gene(3, bound[1])], "cifar10")
    assert any(line.startswith("| 3 |") and f"| {bound[0]}" in line for line in lines)


def test_seconds_are_steps_times_what_a_step_takes() -> None:
    """The loader and the teacher's passes are shared by the two models of a sweep."""
    charges = Charges({"loader": 2, "depth 3": 10, "any-size": 30, "teacher": 20, "teacher forward": 5}, batch=100)
    teacher = {**TEACHER, "cost": {"flops": 3e12, "images": 1e6, "steps": 1000}}  # a forward pass: 1e6 FLOPs
    made = {**LEARNGENE, "cost": {"flops": 3e12, "teacher_flops": 5e11, "steps": 500}}
    one = gene(3, 52.0, teacher=teacher, learngene=made, steps=100, sweep={"models": 2}, teacher_flops=1e9)
    assert charges.descendant(one) == pytest.approx((100 * (1 + 10) + 10 * 5 / 2) / 1e3)
    assert charges.learngene(one) == pytest.approx((500 * 32 + 5000 * 5) / 1e3)
    assert charges.teacher(one) == 22.0
    arm = table([one], "cifar10", charges)
    assert cost(arm, "seconds", ancestry=True).once == pytest.approx(63.0)


def test_the_overview_has_a_row_for_each_arm_and_one_learngene_untuned_once() -> None:
    longer = [gene(depth, top1, arm="any-size-tuned") for depth, top1 in ((3, 53.0), (12, 57.0))]
    lines = overview([*ROWS, *longer], "cifar10", (3, 12))
    ten, whole = (5 * ((2 * 4) ** 0.5 + (8 * 16) ** 0.5) / cost for cost in (14, 22))
    assert lines[2:4] == [
        "| scratch, 20 epochs | 50.0 | 53.0 | 51.5 |  | 1 |  |  |  |",
        "| scratch, 40 epochs | 54.0 | 59.0 | 56.5 | +5.0 | 1 |  |  |  |",
    ]
    assert lines[5].startswith(
        f"| any-size, 20 epochs, tuned | 52.0 | 56.0 | 54.0 | +2.5 | 1 | {ten:.1f} | {whole:.1f} | "
    )
    named = [line.split(" | ")[0].strip("| ") for line in lines[4:]]
    assert named == [
        "any-size, 20 epochs, untuned",
        "any-size, 20 epochs, tuned",
        "any-size-tuned, 20 epochs, tuned",
    ]
    far = [gene(depth, top1, arm="sws") for depth, top1 in ((3, 40.0), (12, 53.0))]
    assert (
        overview([*ROWS, *far], "cifar10", (3, 12))[-1]
        == "| sws, 20 epochs, tuned | 40.0 | 53.0 | 46.5 | -5.0 | 1 | too far below |  |  |"
    )


def test_the_overview_has_the_arms_with_all_of_its_depths() -> None:
    deeper = [row(15, 20, 54.0, 1e13), gene(15, 57.0)]
    named = [line.split(",")[0] for line in overview([*ROWS, *deeper], "cifar10", (12, 15))[2:]]
    assert named == ["| scratch", "| any-size", "| any-size"]  # scratch of 40 epochs has no 15 layers
    assert overview([*ROWS, *deeper], "cifar10", (3, 9)) == [] == overview([], "cifar10", (3, 12))


def test_sizes_share_what_is_made_once() -> None:
    saved = Saving(1.0, pays=5.0, spent=Cost(100, 12, 1), whole=Cost(100, 20, 1), bound="")
    assert [saved.times(sizes) for sizes in (1, 3, 12)] == [5 / 13, 15 / 15, 60 / 24]
    assert (saved.break_even(), saved.break_even(teacher=True)) == (3, 5)
    assert saved._replace(pays=1.0).break_even() == math.inf


def test_the_figure_of_many_sizes_draws_what_the_table_says() -> None:
    rows = [*ROWS[:4], *(gene(depth, top1, arm="any-size-tuned") for depth, top1 in ((3, 52.0), (12, 56.0)))]
    found = savings(rows, "flops")
    assert [series.arm for series, _ in found] == ["any-size-tuned"]
    pays = ((2 * 4) ** 0.5 + (8 * 16) ** 0.5) / 2  # of one size, with 4 for the learngene and 1 for tuning
    ten, hundred = 10 * pays / 14, 100 * pays / 104
    assert f"| any-size, 10 | FLOPs | {4 / (pays - 1):.1f} | {ten:.1f} | {hundred:.1f} |" in lines(rows, None)[2]
    drawn = figure(found).axes[0].lines[0]
    assert dict(drawn.get_xydata())[10] == pytest.approx(ten)

"""The report of the proof, on rows small enough to check by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest

from benchmarks.proof.between import ROWS as DEPTH_ROWS
from benchmarks.proof.charges import Charges
from benchmarks.proof.report import front, front_table, interval, page, report, size_effect
from benchmarks.proof.run import ROWS as ROWS_FILE
from benchmarks.proof.run import read_rows
from benchmarks.proof.transfer import ROWS as TRANSFER_ROWS


def row(depth: int, epochs: int, seed: int, top1: float | None, **changes: Any) -> dict[str, Any]:
    return {
        **{
            "data": "cifar10",
            "arm": "scratch",
            "width": 24,
            "depth": depth,
            "epochs": epochs,
            "seed": seed,
            "top1": top1,
        },
        **{"searching": False, "status": "finished", "lr": 0.04},
        **{"flops": 2e12, "teacher_flops": 1e12, "cpu_seconds": 1800.0, "sweep": {"models": 1}},
        **changes,
    }


ROWS = [row(3, 20, 0, 50.0), row(3, 20, 1, 52.0), row(3, 40, 0, 51.0), row(3, 40, 1, 54.0), row(12, 40, 0, 55.0)]


def test_interval_is_students() -> None:
    assert interval([50.0, 52.0]) == pytest.approx(12.706)  # deviation √2 over √2
    assert math.isnan(interval([50.0]))


def test_front_leaves_searches_and_failures_out() -> None:
    others = [row(3, 20, 100, 90.0, searching=True), row(3, 20, 2, None, status="diverged")]
    assert {cell: len(rows) for cell, rows in front(ROWS + others, "cifar10", "scratch").items()} == {
        (3, 20): 2,
        (3, 40): 2,
        (12, 40): 1,
    }


def test_doubling_is_paired_over_seeds() -> None:
    lines = front_table(front(ROWS, "cifar10", "scratch"))
    assert lines[2] == "| 3 | 20 | 2 | 51.00 ± 12.71 |  | 0.04 | 3.0 | 1.0 | 1,800 |"
    assert "| +1.50 ± 6.35 |" in lines[3]
    assert "| 12 | 40 | 1 | 55.00 |  |" in lines[4]


def test_size_effect_uses_the_seeds_that_both_have() -> None:
    assert "+4.00 points from depth 3 after 40 epochs (needed: 3): size matters" in size_effect(
        front(ROWS, "cifar10", "scratch")
    )
    assert "No schedule" in size_effect(front(ROWS[:2], "cifar10", "scratch"))


def test_report_names_search_and_hours() -> None:
    text = report([*ROWS, row(3, 10, 100, None, searching=True, flops=None, teacher_flops=None)])
    assert "- 10 epochs, 0.0 TFLOPs, 1,800 CPU s; depth 3: 0.04: diverged" in text
    assert text.endswith("6 models, 3.00 core-hours (CPU seconds of their processes).")


def test_the_committed_page_is_of_the_committed_rows() -> None:
    """Run `python -m benchmarks.proof.report --out benchmarks/proof/results.md` if this fails."""
    assert (ROWS_FILE.parent / "results.md").read_text() == page(
        read_rows(ROWS_FILE), Charges.read(), read_rows(TRANSFER_ROWS), read_rows(DEPTH_ROWS)
    )

"""SWS at its paper's proportions."""

from __future__ import annotations

from benchmarks.proof.plan import PLAN, Plan
from benchmarks.proof.run import ROWS, read_rows
from benchmarks.proof.sws16 import SWS_ROWS, lines


def test_the_tables_in_the_docs_are_those_of_the_rows() -> None:
    docs = (ROWS.parents[2] / "docs" / "experiments.md").read_text()
    assert all(line in docs for line in lines([*read_rows(ROWS), *read_rows(SWS_ROWS)]))


def test_its_rows_are_of_its_plan() -> None:
    plan = Plan(PLAN.with_name("sws16.yaml").read_text())
    planned = {plan.key(run) for step in plan.steps for run in plan.runs(step, [])}
    assert {row["key"] for row in read_rows(SWS_ROWS)} <= planned

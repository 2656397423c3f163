"""Accuracy and cost by the number of images."""

from __future__ import annotations

import pytest

from benchmarks.proof.by_images import OURS, SCRATCH, SHARES, lines, points
from benchmarks.proof.plan import PLAN, Plan
from benchmarks.proof.run import ROWS, read_rows


def test_the_table_in_the_docs_is_that_of_the_rows() -> None:
    found = points([*read_rows(ROWS), *read_rows(SHARES)])
    assert [one.images for one in found] == [5_000, 10_000, 50_000]
    docs = (ROWS.parents[2] / "docs" / "experiments.md").read_text()
    assert all(line in docs for line in lines(found))


def test_a_point_averages_sizes_and_needs_both_arms() -> None:
    rows = read_rows(SHARES)
    few = [row for row in rows if row["share"] == 0.1]
    (point,) = points(few)
    for arm in (SCRATCH, OURS):
        scores = [row["top1"] for row in few if row["arm"] == arm]
        assert point.top1[arm] == pytest.approx(sum(scores) / len(scores))
    assert point.sizes == len(scores)
    assert points([row for row in few if row["arm"] == OURS]) == []


def test_a_share_is_of_the_runs_and_of_their_teacher() -> None:
    images = PLAN.with_name("images.yaml").read_text()
    whole, tenth = Plan(images), Plan(images, 0.1)
    assert tenth.images == {**whole.images, "train_share": 0.1}
    assert whole.settings == Plan(PLAN.read_text()).settings  # it extends that plan
    keys = [{plan.key(run) for step in plan.steps for run in plan.runs(step, [])} for plan in (whole, tenth)]
    assert keys[0] and not keys[0] & keys[1]
    taught = {row["key"] for row in read_rows(SHARES) if row["share"] == 0.1}
    assert taught == keys[1]

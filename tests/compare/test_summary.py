"""Total cost, break-even and the cost until the reference's accuracy, on tables small enough to add up by hand."""

from __future__ import annotations

import math
from typing import Any

import pandas
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_learngene.compare.summary import (
    Cost,
    accuracy,
    break_even,
    cost,
    cost_until,
    per_size,
    saving,
    stored_parameters,
    summarise,
)

DEPTHS, SEEDS = (2, 4), (0, 1)


def rows(arm: str, **facts: Any) -> list[dict[str, Any]]:
    """Two sizes at two seeds; tuning costs as many FLOPs as layers, over two epochs."""
    table = []
    for depth in DEPTHS:
        for seed in SEEDS:
            table.append(
                {
                    **{"arm": arm, "width": 8, "depth": depth, "seed": seed, "params": depth, "lr": 1.0},
                    **{"learngene": None, "learngene_parameters": None, "distill_lr": None, "epochs": 2},
                    **{"top1_untuned": 10.0, "top1_epoch1": 30.0, "top1": 50.0 + seed, "history": [10.0, 30.0, 50.0]},
                    **{f"tune_{unit}": float(depth) for unit in ("flops", "images", "seconds")},
                    **{f"fit_{unit}": 0.0 for unit in ("flops", "images", "seconds")},
                    **{f"search_{unit}": 3.0 for unit in ("flops", "teacher_flops", "images", "seconds")},
                    **{f"ancestry_{unit}": 100.0 for unit in ("flops", "images", "seconds")},
                    **{"tune_teacher_flops": 0.0, "per_size": False},
                    **{key: value(depth, seed) if callable(value) else value for key, value in facts.items()},
                }
            )
    return table


def learngene(each: bool = False, flops: float = 20.0) -> dict[str, Any]:
    return {
        "learngene": lambda depth, seed: f"g{seed}-{depth}" if each else f"g{seed}",
        "learngene_parameters": lambda depth, seed: 5 * depth if each else 7,
        **{f"learngene_{unit}": flops for unit in ("flops", "images", "seconds")},
        **{"learngene_teacher_flops": 9.0, "per_size": each},
    }


def frame(*some: list[dict[str, Any]]) -> pandas.DataFrame:
    return pandas.DataFrame([row for each in some for row in each])


def test_a_learngene_is_paid_once_with_its_teacher_and_every_size_its_tuning() -> None:
    arm = frame(rows("sws", **learngene()))
    assert cost(arm, "flops") == Cost(search=6.0, once=29.0, each=3.0)
    assert cost(arm, "teacher_flops") == Cost(search=3.0, once=9.0, each=0.0)
    assert cost(arm, "seconds") == Cost(search=3.0, once=20.0, each=3.0)  # measured with the teacher
    assert cost(arm, "flops").total(10) == 6 + 29 + 10 * 3
    assert cost(arm, "flops").total(10, search=False) == 59
    assert cost(arm, "flops", ancestry=True) == Cost(search=6.0, once=129.0, each=3.0)  # its own training as well
    assert stored_parameters(arm) == 7 and not per_size(arm)


def test_a_model_for_every_size_is_paid_for_every_size() -> None:
    arm = frame(rows("pretrained", **learngene(each=True)))
    assert cost(arm, "flops") == Cost(search=6.0, once=0.0, each=32.0)
    assert stored_parameters(arm) == 5 * 2 + 5 * 4 and per_size(arm)


def test_a_teacher_in_tuning_is_paid_with_it() -> None:
    arm, scratch = frame(rows("distilled", tune_teacher_flops=4.0)), frame(rows("scratch", top1=30.0))
    assert cost(arm, "flops").each == 3 + 4 and cost(arm, "flops", ancestry=True).once == 100
    assert cost_until(arm, scratch) == (0.5 * (2 + 4) + 0.5 * (4 + 4), 2, 2)


def test_scratch_has_nothing_to_pay_once_and_no_ancestry() -> None:
    arm = frame(rows("scratch", search_teacher_flops=0.0))
    assert cost(arm, "flops", ancestry=True) == Cost(search=3.0, once=0.0, each=3.0)
    assert stored_parameters(arm) == 0 and not per_size(arm)


def test_accuracy_is_the_mean_over_sizes_and_its_deviation_over_seeds() -> None:
    mean, deviation = accuracy(frame(rows("sws")), "top1")
    assert mean == 50.5 and deviation == pytest.approx(0.5**0.5)


@given(st.builds(Cost, *[st.integers(0, 50).map(float)] * 3), st.builds(Cost, *[st.integers(0, 50).map(float)] * 3))
def test_break_even_is_the_first_number_of_descendants_that_costs_less(arm: Cost, reference: Cost) -> None:
    cheaper = [count for count in range(1, 200) if arm.total(count) < reference.total(count)]
    found = break_even(arm, reference)
    if arm.each < reference.each or (arm.each == reference.each and cheaper):
        assert found == cheaper[0]
    else:
        assert found == math.inf


def test_the_cost_until_the_references_accuracy_stops_where_it_is_reached() -> None:
    scratch = frame(rows("scratch", top1=30.0))
    arm = frame(rows("sws", **learngene()))
    # reached after one of two epochs at both sizes: 20 and the teacher's 9 once, then half of 2 and half of 4
    assert cost_until(arm, scratch) == (20 + 9 + 1 + 2, 2, 2)
    assert cost_until(arm, scratch, "seconds") == (20 + 1 + 2, 2, 2)
    assert saving(arm, scratch, 10) == 15 / (29 + 10 * 1.5)  # scratch, too, was there after one epoch
    assert saving(arm, scratch, 10, unit="seconds") == 15 / (20 + 10 * 1.5)
    assert saving(scratch, scratch, 10) == 1
    untuned = frame(rows("any", **learngene(), history=[30.0, 40.0, 50.0]))
    assert cost_until(untuned, scratch) == (29.0, 2, 2)
    best = frame(rows("scratch", top1=lambda depth, seed: 99.0 if depth == 4 else 30.0))
    assert cost_until(arm, best) == (29 + 1, 1, 2) and saving(arm, best) is None


def test_a_single_size_with_a_model_of_its_own_is_paid_for_every_further_size() -> None:
    arm = frame([row for row in rows("pretrained", **learngene(each=True)) if row["depth"] == 4])
    assert cost(arm, "flops") == Cost(search=6.0, once=0.0, each=33.0)


def test_a_cost_that_is_not_known_is_not_made_up() -> None:
    arm = frame(rows("sws", **learngene(), ancestry_flops=None))
    whole = cost(arm, "flops", ancestry=True)
    assert math.isnan(whole.total(5)) and math.isnan(break_even(whole, Cost(0, 0, 9)))


def test_the_summary_compares_at_the_sizes_that_an_arm_has() -> None:
    some = [row for row in rows("ligo", **learngene()) if row["depth"] == 4]
    table = frame(rows("scratch"), some)
    scratch, ligo = summarise(table, ["scratch", "ligo"], "scratch")
    assert scratch["ratio"] == 1.0 and scratch["sizes"] == 2
    assert ligo["sizes"] == 1 and ligo["flops"] == 33 and ligo["ratio"] == 4 / 33
    assert ligo["flops_teacher"] == 9 and ligo["ratio_seconds"] == 4 / 24


def test_a_reference_that_lacks_sizes_is_compared_where_it_has_them() -> None:
    few = [row for row in rows("scratch", top1=50.0) if row["depth"] == 4]
    other = [{**row, "depth": 9} for row in few]
    table = frame(rows("sws", **learngene()), few, [{**row, "arm": "other"} for row in other])
    sws, scratch, alone = summarise(table, ["sws", "scratch", "other"], "scratch")
    assert sws["flops"] == 29 + 2 + 4 and sws["ratio"] == 4 / (29 + 4)
    assert (sws["until_compared"], scratch["saving"]) == (1, 1.0)
    assert alone["ratio"] is None and alone["break_even_seconds"] is None and alone["saving_seconds"] is None


def test_the_reference_reaches_its_own_accuracy_however_its_mean_is_rounded() -> None:
    tops = {0: 42.0, 1: 42.1, 2: 42.1}  # numpy and pandas differ in the last bit of their mean
    some = [
        {**row, "seed": seed, "top1": top, "history": [10.0, 30.0, top]}
        for row in rows("scratch")[::2]
        for seed, top in tops.items()
    ]
    scratch = frame(some)
    assert cost_until(scratch, scratch) == (2 + 4, 2, 2) and saving(scratch, scratch) == 1

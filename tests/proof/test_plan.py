"""The plan of the proof: keys, searches that extend, rates that follow from them, plateaus that end a front."""

from __future__ import annotations

import re
from dataclasses import asdict, replace
from typing import Any

import pytest

from benchmarks.proof.commands import Places, base_commands, distill_command, sweep_command, teacher_command
from benchmarks.proof.plan import PLAN, Plan, Run, pending
from benchmarks.proof.run import ROWS, read_rows

TEXT = """
base: {width: 8, heads: 1, patch: 8, depth: 4, image: 32}
images: {crop_pct: 1.0}
settings: {batch_size: 4}
teacher: {model: resnet10t}
search: {seed: 100, depths: [2, 4], lrs: [1, 2, 4], factor: 2, limits: [0.5, 8], split: {validate_on: holdout}}
steps:
  - {data: cifar10, arm: scratch, search: 1}
  - {data: cifar10, arm: scratch, epochs: 2, depths: [2, 3, 4], seeds: [0, 1]}
  - {data: cifar10, arm: scratch, epochs: 8, depths: [2, 4], seeds: [0], gain: 0.5}
"""
PLACES = {"store": "s", "data_dir": "d"}


def row(plan: Plan, run: Run, top1: float | None) -> dict[str, Any]:
    return {"key": plan.key(run), **asdict(run), "top1": top1}


def searched(plan: Plan, scores: dict[int, dict[float, float | None]]) -> list[dict[str, Any]]:
    """Rows of the first search, by depth and learning rate."""
    return [
        row(plan, Run("cifar10", "scratch", depth, 1, 100, lr, True), top1)
        for depth, by_rate in scores.items()
        for lr, top1 in by_rate.items()
    ]


def test_a_key_follows_from_everything_that_decides_the_weights() -> None:
    run = Run("cifar10", "scratch", 2, 2, 0, 1.0, False)
    keys = {Plan(TEXT).key(replace(run, **change)) for change in ({}, {"depth": 3}, {"seed": 1}, {"arm": "distilled"})}
    other = Plan(TEXT.replace("batch_size: 4", "batch_size: 8"))
    taught = Plan(TEXT.replace("resnet10t", "resnet18"))
    assert len(keys) == 4
    assert other.key(run) not in keys
    assert taught.key(run) in keys
    assert taught.key(replace(run, arm="distilled")) not in keys


def test_runs_of_a_step_share_a_process_by_seed_and_rate() -> None:
    plan = Plan(TEXT)
    assert [(run.depth, run.lr) for run in pending(plan, [])] == [(2, 1), (4, 1)]
    rows = searched(plan, {2: {1: 10, 2: 30, 4: 20}, 4: {1: 30, 2: 40, 4: 20}})
    assert [(run.depth, run.seed, run.lr) for run in pending(plan, rows)] == [(2, 0, 2), (3, 0, 2), (4, 0, 2)]


def test_a_best_rate_at_the_border_extends_the_grid() -> None:
    plan = Plan(TEXT)
    rows = searched(plan, {2: {1: 30, 2: 20, 4: 10}, 4: {1: 30, 2: 40, 4: None}})
    assert [(run.depth, run.lr) for run in pending(plan, rows)] == [(2, 0.5)]
    rows += searched(plan, {2: {0.5: 35}})  # the border of what is tried at all
    assert [(run.depth, run.lr) for run in pending(plan, rows)] == [(2, 0.5)]
    assert [run.lr for run in plan.runs(plan.steps[1], rows)] == [0.5, 2, 2] * 2


def test_rates_wait_for_the_search() -> None:
    plan = Plan(TEXT)
    rows = searched(plan, {2: {1: 30, 2: 20, 4: 10}, 4: {1: 30, 2: 40, 4: 20}})
    with pytest.raises(LookupError, match="search of 1 epochs"):
        plan.runs(plan.steps[1], rows)


@pytest.mark.parametrize(("gain", "depths"), [(0.4, [4]), (0.6, [2, 4])])
def test_a_front_ends_where_doubling_brings_little(gain: float, depths: list[int]) -> None:
    plan = Plan(
        TEXT.replace("search: 1}", "search: 4}").replace("epochs: 2, depths: [2, 3, 4]", "epochs: 8, depths: []")
    )
    rows = [
        {**row(plan, Run("cifar10", "scratch", depth, 4, 100, lr, True), top1)}
        for depth in (2, 4)
        for lr, top1 in ((1, 10), (2, 20), (4, 10))
    ]
    for depth, gained in ((2, gain), (4, 1.0)):
        rows += [
            row(plan, Run("cifar10", "scratch", depth, epochs, 0, 1, False), 50 + gained * (epochs == 4))
            for epochs in (2, 4)
        ]
    assert [run.depth for run in pending(plan, rows)] == depths


def test_a_learngene_has_one_rate_for_all_depths() -> None:
    plan = Plan(TEXT.replace("arm: scratch", "arm: gene") + "learngenes: {gene: {method: sws}}")
    rows = [row(plan, replace(run, depth=4), 20) for run in pending(plan, [])[:1]]
    assert plan.runs(plan.steps[0], rows) == plan.runs(plan.steps[0], [])  # a rate counts when both depths have it
    scores = {2: {1: 30, 2: 36, 4: 10}, 4: {1: 30, 2: 26, 4: 20}}
    rows = [
        row(plan, Run("cifar10", "gene", depth, 1, 100, lr, True), top1)
        for depth, by_rate in scores.items()
        for lr, top1 in by_rate.items()
    ]
    assert {run.lr for run in plan.runs(plan.steps[1], rows)} == {2}


def test_an_arm_can_tune_the_learngene_of_another_in_its_own_way() -> None:
    plan = Plan(
        TEXT + "tuning: {epochs: 2, lr_share: 0.1}\n"
        "learngenes: {gene: {method: sws}, taught: {of: gene, tuning: {epochs: 10, lr_share: 0.5, taught: true}}}"
    )
    places = Places(*PLACES.values())  # type: ignore[arg-type]
    gene, taught = (Run("cifar10", arm, 2, 20, 0, 0.08, False) for arm in ("gene", "taught"))
    assert distill_command(plan, gene, places) == distill_command(plan, taught, places)
    assert plan.key(gene) != plan.key(taught)
    lines = [" ".join(sweep_command(plan, [run], places)) for run in (gene, taught)]
    for line, epochs, lr in zip(lines, (2, 10), (0.008, 0.04), strict=True):
        assert f"--learngene cifar10-gene-e20-s0-lr0.08 --arms sws --depths 2 --epochs {epochs} " in line
        assert f"--lr {lr} " in line
    assert ["--ancestry" in line for line in lines] == [False, True]


def test_the_plan_and_its_commands_are_the_products() -> None:
    """Every flag of the plan's commands is one that the product knows."""
    from ray_learngene.config import AncestryConfig, DistillConfig, ExtractConfig, SweepConfig

    plan, places = Plan(PLAN.read_text()), Places(*PLACES.values())  # type: ignore[arg-type]
    sweep = sweep_command(plan, [Run("cifar10", "distilled", 3, 40, 0, 0.04, True)], places)
    ancestry, extract = base_commands(plan, "cifar10", places)
    teacher = teacher_command(plan, "cifar10", places)
    learngene = distill_command(plan, Run("cifar10", "any-size", 3, 40, 0, 0.04, True), places)
    configs = (
        (ancestry, AncestryConfig), (extract, ExtractConfig), (teacher, AncestryConfig),
        (sweep, SweepConfig), (learngene, DistillConfig),
    )  # fmt: skip
    for line, config in configs:
        flags = {word[2:].removeprefix("no-").replace("-", "_") for word in line if re.match("--[a-z]", word)}
        assert flags <= config.model_fields.keys()


def test_the_recipes_of_the_untied_learngene_are_what_the_proof_ran() -> None:
    from ray_learngene.cli import main
    from ray_learngene.config.decides import RUN, decisive
    from ray_learngene.distillation.phases import phases

    def settings(line: list[str]) -> tuple[Any, dict[str, Any]]:
        parsed = main._parse(line)
        assert parsed is not None
        return parsed[1], decisive(parsed[1], RUN)

    plan, places = Plan(PLAN.read_text()), Places(*PLACES.values())  # type: ignore[arg-type]
    untied = Run("cifar10", "any-size-untied-taught", 6, 20, 0, 0.08, False)
    shared = plan.started_from(untied)
    assert shared is not None
    ran = [teacher_command(plan, "cifar10", places), *(distill_command(plan, run, places) for run in (shared, untied))]
    recipes = [["--config", f"jobs/recipes/cifar10-{name}.yaml", "--data-dir", "d"] for name in ("ancestry", "distill")]
    _, teacher = settings(["ancestry", *recipes[0]])
    told = [teacher, *(decisive(phase, RUN) for phase in phases(settings(["distill", *recipes[1]])[0]))]
    for one, other in zip(told, (settings(line[2:])[1] for line in ran), strict=True):
        one, other = (
            {k: v for k, v in each.items() if k not in ("name", "ancestry", "start")} for each in (one, other)
        )
        assert one == other  # but for names


def test_arms_whose_step_is_the_same_are_timed_once() -> None:
    measured = Plan(PLAN.read_text()).measured_as()
    assert measured["any-size-views"] == measured["any-size-labelled"] == "any-size-steady"
    assert measured["any-size-untied-40"] == "any-size-untied" != measured["any-size-joint"]
    assert "any-size-tuned" not in measured  # it takes another arm's learngene


def test_every_learngene_is_charged_once_for_the_answers_that_it_read() -> None:
    """Also where another run had computed and kept them."""
    plan, charged = Plan(PLAN.read_text()), 0
    for row in read_rows(ROWS):
        chain, made = [], row.get("learngene")
        while made is not None:
            chain.append(made)
            made = made.get("start")
        readers = [one for one in chain if one.get("arm", row["arm"]) in plan.learngenes]
        readers = [one for one in readers if plan.reads_answers(one.get("arm", row["arm"]))]
        if readers:
            arm, cost = plan.learngenes[readers[-1].get("arm", row["arm"])], readers[-1]["cost"]
            epochs = round(cost["steps"] * plan.settings["batch_size"] / (45_000 if row["searching"] else 50_000))
            a_pass = row["teacher"]["cost"]["flops"] / row["teacher"]["cost"]["images"] / 3
            full = cost["images"] * min(1, arm["view_epochs"] / epochs) * a_pass
            assert sum(one["cost"]["teacher_flops"] for one in readers) == pytest.approx(full, rel=1e-3), row["key"]
            charged += 1
    assert charged

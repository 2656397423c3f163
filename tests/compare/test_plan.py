"""What a benchmark would train, before anything is."""

from __future__ import annotations

from typing import Any

import pytest

from ray_learngene.compare.plan import plan_arms, sizes
from ray_learngene.compare.runs import arm_text, distill_config, extract_configs, sweep_config, tuning_epochs
from ray_learngene.config import BenchConfig
from ray_learngene.errors import UserError

ARMS = {
    "sws": {"method": "sws"},
    "heur-lg": {"method": "heur-lg"},
    "ligo": {"method": "ligo"},
    "pretrained": {"method": "pretrained"},
    "distilled": {"method": "scratch", "tune": "distilled"},
    "scratch": {"method": "scratch", "tune": "full"},
}


def config(**changes: Any) -> BenchConfig:
    return BenchConfig(
        **{
            **{"name": "b", "ancestry": "store:ancestries/x", "preset": "nano", "data": "digits", "depth": 6},
            **{
                "depths": "2,4,6",
                "arms": ARMS,
                "seeds": 2,
                "epochs": 12,
                "tune_epochs": 3,
                "drop_path": 0.0,
            },
            **changes,
        }
    )


def test_arms_share_what_they_start_from() -> None:
    by_name = {row.name: row for row in plan_arms(config(), 10)}
    labels = {name: [d and d.label for d in row.distillations.values()] for name, row in by_name.items()}
    assert labels == {
        "sws": ["sws"] * 3,
        "heur-lg": ["model-w48-d6"] * 3,
        "ligo": ["model-w48-d2"] * 3,
        "pretrained": ["model-w48-d2", "model-w48-d4", "model-w48-d6"],
        "distilled": [None] * 3,
        "scratch": [None] * 3,
    }
    lrs = {one: 0.02 for row in by_name.values() for one in row.distillations.values() if one}
    texts = {name: arm_text(config(), row, lrs) for name, row in by_name.items()}
    assert texts == {
        "sws": "sws@b-sws-lr0.02-s{seed}",
        "heur-lg": "heur-lg@b-heur-lg-lr0.02-s{seed}",
        "ligo": "ligo@b-ligo-lr0.02-s{seed}",
        "pretrained": "pretrained@b-model-w{width}-d{depth}-lr0.02-s{seed}",
        "distilled": "scratch",
        "scratch": "scratch",
    }
    assert [(one.name, one.source) for one in extract_configs(config(), by_name["ligo"], lrs)] == [
        ("b-ligo-lr0.02-s0", "store:learngenes/b-model-w48-d2-lr0.02-s0"),
        ("b-ligo-lr0.02-s1", "store:learngenes/b-model-w48-d2-lr0.02-s1"),
    ]
    assert not list(extract_configs(config(), by_name["pretrained"], lrs))


def test_what_an_arm_cannot_do_is_left_out_with_its_reason() -> None:
    arms = {"grow": {"method": "ligo"}, "shrink": {"method": "weight-selection"}, "scratch": {"method": "scratch"}}
    grow, shrink, scratch = plan_arms(config(widths="32,48,64", arms=arms), 10)
    assert {spec.width for spec in grow.specs} == {32, 48, 64}
    assert {spec.width for spec in shrink.specs} == {32, 48}
    assert all("width" in reason and "64" in reason for reason in shrink.refused.values())
    assert len(scratch.specs) == 9 and not scratch.refused


def test_an_arm_that_can_do_no_size_or_is_none_is_refused() -> None:
    with pytest.raises(UserError, match="arm 'a' can make none of the sizes: .* width"):
        plan_arms(config(widths="64", arms={"a": {"method": "supernet"}, "scratch": {"method": "scratch"}}), 10)
    with pytest.raises(UserError, match="arm 'a': unknown method 'nothing'"):
        plan_arms(config(arms={"a": {"method": "nothing"}, "scratch": {"method": "scratch"}}), 10)
    with pytest.raises(ValueError, match="reference 'scratch' is none of the arms"):
        config(arms={"sws": {"method": "sws"}})


@pytest.mark.parametrize(
    ("arms", "says"),
    [
        ({"a": {"method": "sws"}, "b": {"method": "sws"}}, "arm 'b' is the same as 'a'"),
        ({"model-a": {"method": "sws"}}, "names that begin with model-"),
        ({"my arm": {"method": "sws"}}, "is not the name of"),
        ({"a": {"method": "scratch", "source": "largest"}}, "'scratch' starts from no model, leave out its source"),
    ],
)
def test_names_and_sources_are_checked_before_anything_starts(arms: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        plan_arms(config(arms={**arms, "scratch": {"method": "scratch", "tune": "full"}}), 10)


@pytest.mark.parametrize("setting", [{"lr": 1.0}, {"validate_on": "holdout"}, {"lrs": (0.0,)}])
def test_what_a_benchmark_decides_itself_cannot_be_set(setting: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"cannot be set|greater than 0"):
        config(**setting)


def test_every_size_has_the_presets_head_size() -> None:
    assert [(spec.width, spec.heads, spec.depth) for spec in sizes(config(widths="32,48", depths="2,4"), 10)] == [
        *((32, 2, 2), (32, 2, 4), (48, 3, 2), (48, 3, 4)),
    ]


def test_epochs_of_the_three_ways_of_tuning() -> None:
    by_name = {row.name: row for row in plan_arms(config(), 10)}
    # 12 epochs at depth 6 are as much as 6 at depths 2, 4 and 6, and 3 are for tuning
    assert {name: tuning_epochs(config(), row) for name, row in by_name.items()} == {
        **{"sws": 3, "heur-lg": 3, "ligo": 3, "pretrained": 3},
        **{"distilled": 9, "scratch": 12},
    }


def test_epochs_of_an_arm_are_those_of_its_distillation_or_of_its_full_training() -> None:
    arms = {
        "long": {"method": "sws", "epochs": 20},
        "sws": {"method": "sws"},
        "pretrained": {"method": "pretrained", "epochs": 5},
        "scratch": {"method": "scratch", "tune": "full", "epochs": 7},
    }
    by_name = {row.name: row for row in plan_arms(config(arms=arms), 10)}
    lrs = {one: 0.02 for row in by_name.values() for one in row.distillations.values() if one}
    runs = {one.label: distill_config(config(), one, 0.02, 0) for one in lrs}
    assert {label: run.epochs for label, run in runs.items()} == {
        **{"long": 20, "sws": 12},
        **{f"model-e5-w48-d{depth}": 5 for depth in (2, 4, 6)},
    }
    assert arm_text(config(), by_name["pretrained"], lrs) == ("pretrained@b-model-e5-w{width}-d{depth}-lr0.02-s{seed}")
    assert [tuning_epochs(config(), row) for row in by_name.values()] == [3, 3, 3, 7]
    with pytest.raises(ValueError, match="epochs of a distilled arm follow"):
        config(arms={"scratch": {"method": "scratch", "tune": "distilled", "epochs": 2}})


def test_a_search_looks_at_held_out_training_images_only() -> None:
    row = plan_arms(config(), 10)[0]
    spec = row.specs[0]
    distillation = row.distillations[spec]
    assert distillation is not None
    searching = distill_config(config(), distillation, 2.0, 0, search=True)
    assert searching.validate_on == "holdout" and searching.lr == 2.0
    assert searching.epochs == distillation.epochs / 2  # half of what it decides
    assert distill_config(config(), distillation, 2.0, 1).validate_on == "val"
    tuning = sweep_config(config(), row, ["sws"], "b-sws", 2.0, [spec], search=True)
    assert tuning.validate_on == "holdout" and tuning.seeds == 1 and tuning.epochs == 3
    final = sweep_config(config(), row, ["sws"], "b-sws", 2.0, row.specs, search=False)
    assert final.validate_on == "val" and final.seeds == 2 and final.depths == "2,4,6"
    taught = next(one for one in plan_arms(config(), 10) if one.name == "distilled")
    learning = sweep_config(config(), taught, ["scratch"], "b-sws", 2.0, [spec], search=False)
    assert learning.ancestry == "store:ancestries/x" and final.ancestry is None


def test_arms_that_are_trained_alike_are_refused_however_they_are_written() -> None:
    for one, other in (
        ({"method": "pretrained"}, {"method": "pretrained", "source": "each"}),
        ({"method": "scratch", "tune": "full"}, {"method": "scratch", "tune": "full", "epochs": 12}),
        ({"method": "any-size"}, {"method": "any-size:growth=3"}),
    ):
        with pytest.raises(UserError, match="arm 'b' is the same as 'a': give each arm once"):
            plan_arms(config(arms={"a": one, "b": other}, reference="a"), 10)


def test_every_size_may_have_a_learngene_that_is_taken_from_its_own_model() -> None:
    (row,) = plan_arms(
        config(arms={"selected": {"method": "weight-selection", "source": "each"}}, reference="selected"), 10
    )
    lrs = {one: 0.02 for one in row.distillations.values() if one}
    extracted = list(extract_configs(config(), row, lrs))
    names = {one.name: one.source for one in extracted}
    assert len(names) == len(extracted) == 3 * config().seeds
    assert names["b-selected-w48-d4-lr0.02-s0"] == "store:learngenes/b-model-w48-d4-lr0.02-s0"
    assert arm_text(config(), row, lrs) == "weight-selection@b-selected-w{width}-d{depth}-lr0.02-s{seed}"


def test_an_arm_whose_method_decides_another_depth_is_refused_at_once() -> None:
    arms = {"sws": {"method": "sws:stages=1-1"}, "scratch": {"method": "scratch", "tune": "full"}}
    says = r"arm 'sws' can make none of the sizes: --depth 6 and --method sws:stages=1-1 \(2 layers\) disagree"
    with pytest.raises(UserError, match=says):
        plan_arms(config(arms=arms), 10)


def test_an_arm_has_settings_of_its_own_for_its_distillation() -> None:
    own = {"alpha": 0.5, "warmup_epochs": 9}
    arms = {
        **{"wave": {"method": "wave", "settings": own}, "heur-lg": {"method": "heur-lg", "settings": own}},
        **{"auto-lg": {"method": "auto-lg"}, "scratch": {"method": "scratch", "tune": "full"}},
    }
    wave, heur, auto, _ = plan_arms(config(arms=arms), 10)
    made = [one for row in (wave, heur, auto) for one in set(row.distillations.values()) if one]
    configs = [distill_config(config(), one, 0.1, 0) for one in made]
    assert [(each.alpha, each.warmup_epochs) for each in configs] == [(0.5, 6), (0.5, 6), (1.0, 5)]
    labels = [one.label for one in made]
    assert labels[0] == "wave" and labels[1].startswith("model-") and labels[2] == "model-w48-d6" != labels[1]
    assert distill_config(config(), made[0], 0.1, 0, search=True).warmup_epochs == 3  # half of the search's


@pytest.mark.parametrize(
    ("arm", "says"),
    [
        ({"method": "wave", "settings": {"lr": 1}}, "lr is none of an arm's own settings: accumulation"),
        ({"method": "wave", "settings": {"alpha": 2}}, "a: Input should be less than or equal to 1"),
        ({"method": "mimetic", "settings": {"alpha": 0.5}}, "'mimetic' is not distilled, leave out its settings"),
    ],
)
def test_settings_that_an_arm_cannot_have_are_refused(arm: dict[str, Any], says: str) -> None:
    with pytest.raises((UserError, ValueError), match=says):
        plan_arms(config(arms={"a": arm, "scratch": {"method": "scratch"}}), 10)

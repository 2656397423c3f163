"""What descendants cost as a whole, and scratch at the same cost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ray_learngene.cli.leaderboard import leaderboard
from ray_learngene.config import AncestryConfig, DistillConfig, PlanConfig, SweepConfig
from ray_learngene.distillation.distill import distill
from ray_learngene.distillation.train_ancestry import train_ancestry
from ray_learngene.store.costs import with_whole_costs
from ray_learngene.store.store import Store
from ray_learngene.sweeps.plan import plan
from ray_learngene.sweeps.prepare import prepare
from ray_learngene.sweeps.sweep import sweep
from tests.fixtures.write_store import OLD_STORE

ROW: dict[str, Any] = {
    **{"arm": "sws", "width": 8, "image": 8, "learngene": "g", "flops": 10, "teacher_flops": 5, "fit_flops": 1},
    **{"seconds": 2.0, "fit_seconds": 0.5, "learngene_flops": 60, "learngene_teacher_flops": 40},
    **{"learngene_seconds": 8.0},
}
SCRATCH = {**ROW, "arm": "scratch", "learngene": None, "teacher_flops": 0, "fit_flops": 0}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An ancestry model that cost 400 FLOPs, and a learngene that was distilled from it."""
    store = Store(str(tmp_path / "store"))
    (tmp_path / "files").mkdir()
    (tmp_path / "files/x.txt").write_text("x")
    cost = {"images": 4, "flops": 400, "teacher_flops": 0, "seconds": 40.0}
    store.publish("ancestry", "a", tmp_path / "files", {"cost": cost})
    store.publish("learngene", "g", tmp_path / "files", {"ancestry": "store:ancestries/a", "cost": cost})
    return store


def test_shared_costs_are_divided_by_the_sizes_that_share_them(store: Store) -> None:
    rows = [{**ROW, "depth": depth, "seed": seed} for depth in (1, 2) for seed in (0, 1)] + [{**SCRATCH, "depth": 1}]
    *costed, scratch = with_whole_costs(rows, store)
    assert {row["own_flops"] for row in costed} == {16} and {row["ancestry_flops"] for row in costed} == {400}
    assert {row["whole_flops"] for row in costed} == {16 + (100 + 400) / 2}
    assert {row["undivided_seconds"] for row in costed} == {2.5 + 8 + 40}
    assert scratch["whole_flops"] == scratch["undivided_flops"] == scratch["own_flops"] == 10


def test_a_learngene_for_each_size_is_not_divided(store: Store) -> None:
    rows = [{**ROW, "depth": depth, "learngene": f"g{depth}"} for depth in (1, 2)]
    costed = with_whole_costs(rows, store, teacher="store:ancestries/a")
    assert [row["whole_flops"] for row in costed] == [16 + 100 + 400 / 2] * 2


def test_an_unknown_cost_is_none_and_an_old_store_has_costs(store: Store) -> None:
    costed = with_whole_costs([{**ROW, "depth": 1, "learngene_flops": None}], store)
    assert costed[0]["whole_flops"] is None and costed[0]["whole_seconds"] == 2.5 + 8 + 40
    paths = sorted((OLD_STORE / "descendants/sizes").glob("*/manifest.json"))
    rows = [json.loads(path.read_text())["metadata"]["row"] for path in paths]
    board = leaderboard(with_whole_costs(rows, Store(str(OLD_STORE))))
    assert all(line["whole_flops"] <= line["undivided_flops"] for line in board)
    assert all(line["whole_flops"] > 0 for line in board if line["arm"] == "sws")


def test_scratch_costs_what_the_learngene_does_unless_the_sweep_began_otherwise(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "ray_learngene")
    vit = {"img_size": 8, "patch_size": 2, "embed_dim": 32, "depth": 1, "num_heads": 2}
    common: dict[str, Any] = {
        **{"data": "digits", "train_share": 0.1, "val_share": 0.1, "batch_size": 64, "warmup_epochs": 0},
        **{"store": str(tmp_path / "store"), "lr": 1e-3},
    }
    model: dict[str, Any] = {"model": "deit_tiny_patch16_224", "model_args": {**vit, "class_token": False}}
    model["model_args"]["global_pool"] = "avg"
    train_ancestry(AncestryConfig(**common, **model, name="a", epochs=3, workers=0))
    distill(
        DistillConfig(
            **common,
            name="g",
            epochs=3,
            workers=0,
            ancestry="store:ancestries/a",
            preset="nano",
            depth=2,
            method="tleg",
        )
    )
    several: dict[str, Any] = {**common, "learngene": "g", "epochs": 1, "in_process": True}
    began = SweepConfig(**several, name="s", depths="1", arms=("tleg", "scratch"))
    table = sweep(began).astype(object).set_index("arm")
    one_epoch = table.loc["tleg", "flops"]
    assert table.loc["scratch", "epochs"] > 1 and table.loc["scratch", "scratch"] == "cost"
    assert table.loc["tleg", "epochs"] == 1
    assert table.loc["tleg", "flops"] == 6 * table.loc["tleg", "macs"] * table.loc["tleg", "steps"] * 64
    assert (table.loc["tleg", "steps"], table.loc["scratch", "steps"]) == (2, 2 * table.loc["scratch", "epochs"])
    assert abs(table.loc["scratch", "whole_flops"] - table.loc["tleg", "whole_flops"]) <= one_epoch / 2
    assert "the cost of a descendant with its share" in caplog.text
    for changes in ({}, {"ancestry": "store:ancestries/a", "alpha": 0.5}):
        taught = SweepConfig(
            **{**several, "name": f"taught-{len(changes)}", "depths": "1", "arms": ("tleg", "scratch"), **changes}
        )
        planned = plan(PlanConfig(**{name: getattr(taught, name) for name in taught.model_fields_set - {"name"}}))
        (trial,) = {one.epochs for one in prepare(taught, Store(taught.store)).wanted if one.arm.text == "scratch"}
        assert [*planned.scratch_epochs.values()] == [trial]
    grown = sweep(began.model_copy(update={"depths": "1,2"}))  # the finished one keeps its epochs
    shares = grown[grown["arm"] == "scratch"].set_index("depth")["epochs"]
    assert shares[1] == table.loc["scratch", "epochs"] and len(shares) == 2 and 1 < shares[2] < shares[1]
    before = sweep(SweepConfig(**several, name="old", depths="1", arms="scratch", scratch="epochs"))
    assert before["epochs"].tolist() == [1] and before["scratch"].tolist() == ["epochs"]
    settings = tmp_path / "store/sweeps/old/sweep.json"
    earlier = json.loads(settings.read_text())
    del earlier["scratch"]  # as an earlier version wrote it
    settings.write_text(json.dumps(earlier))
    again = sweep(SweepConfig(**several, name="old", depths="1", arms="scratch"))
    assert again["descendant"].tolist() == before["descendant"].tolist()
    both = sweep(SweepConfig(**several, name="old", depths="1", arms="scratch", scratch="cost"))
    assert sorted(both["scratch"]) == ["cost", "epochs"] and len(leaderboard(both.to_dict("records"))) == 2

"""One descendant in this process: resumed exactly, published once, and honest about where it comes from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from ray_learngene.config import SweepConfig
from ray_learngene.data.open import open_image_sets
from ray_learngene.data.pipeline import ImagePipeline
from ray_learngene.delivery.latency import measure_latency
from ray_learngene.methods.registry import create_method
from ray_learngene.models.build import build
from ray_learngene.models.preprocessing import Preprocessing
from ray_learngene.models.specs import PRESETS
from ray_learngene.models.timm_folder import load_timm
from ray_learngene.store.learngenes import LEARNGENE_COLUMNS, StoredLearngene
from ray_learngene.store.store import Store
from ray_learngene.sweeps.arms import Arm
from ray_learngene.sweeps.descendant import Descendant, SweepContext, descendant
from ray_learngene.sweeps.descendant_run import DescendantTask
from ray_learngene.sweeps.selection import cost_columns
from ray_learngene.sweeps.siblings import train_descendant
from ray_learngene.training import trainer

SPEC = PRESETS["nano"].replace(depth=2)
COST = {"seconds": 5.0, "images": 640, "flops": 10, "teacher_flops": 3}
PREPROCESSING = Preprocessing(image_size=8, mean=(0.5,) * 3, std=(0.5,) * 3, crop_pct=1.0, interpolation="bicubic")


class Killed(Exception):
    pass


def inputs(store: Path, made_by: str = "sws:stages=1-1") -> tuple[SweepConfig, ImagePipeline, StoredLearngene]:
    config = SweepConfig(
        data="digits",
        name="s",
        learngene="digits",
        store=str(store),
        epochs=2,
        batch_size=256,
        hflip=0,
        checkpoint_seconds=0,
    )
    sets = open_image_sets(config)
    method = create_method(made_by)
    torch.manual_seed(0)
    learngene = method.extract(method.auxiliary(SPEC)).describe(
        labels=sets.train.classes, preprocessing=PREPROCESSING.model_dump(mode="json")
    )
    learngene.save(store.with_name("gene"))
    published = Store(str(store))
    if not published.exists("learngene", "digits"):
        published.publish("learngene", "digits", store.with_name("gene"), {"cost": COST})
    images = ImagePipeline(sets.train, sets.val, PREPROCESSING, config)
    return config, images, StoredLearngene.load(published, "digits")


def run(store: Path, arm: str = "sws", report: Any = lambda metrics: None) -> tuple[Descendant, dict[str, Any]]:
    config, images, stored = inputs(store, arm if arm.startswith("wave") else "sws:stages=1-1")
    expanded = stored if arm != "scratch" else None
    costs = cost_columns(SPEC, measure_latency(SPEC), 256)
    shared = SweepContext(config, images, None, Store(config.store))
    one = descendant(Arm.parse(arm, "digits"), SPEC, 3, 1e-3, shared, expanded)
    return one, train_descendant(DescendantTask(one, expanded, costs, report), shared)


def weights(store: Path, one: Descendant, out: Path) -> dict[str, torch.Tensor]:
    return load_timm(Store(str(store)).download("descendant", f"s/{one.name}", out)).state_dict()


@pytest.mark.parametrize("arm", ["sws", "wave:fit=2"])
def test_a_killed_descendant_goes_on_to_the_same_weights(
    arm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die_in_the_second_epoch(metrics: dict[str, Any]) -> None:
        if metrics["epoch"] == 2:
            raise Killed

    one, row = run(tmp_path / "undisturbed", arm)
    with pytest.raises(Killed):
        run(tmp_path / "killed", arm, report=die_in_the_second_epoch)
    assert Store(str(tmp_path / "killed")).exists("checkpoint", f"s/{one.name}")
    monkeypatch.delattr("ray_learngene.sweeps.descendant_run.Fitting")  # it has been fitted to its size
    again, resumed = run(tmp_path / "killed", arm)
    assert again == one
    assert row["fit_steps"] == (0 if arm == "sws" else 2)
    costs = [name for name in row if name.startswith("fit_") and "seconds" not in name]
    assert [resumed[name] for name in costs] == [row[name] for name in costs]
    assert (resumed["fit_seconds"] > 0) == (row["fit_seconds"] > 0)
    assert resumed["top1"] == row["top1"] and resumed["steps"] == row["steps"] == 10
    first, second = (
        weights(tmp_path / "undisturbed", one, tmp_path / "1"),
        weights(tmp_path / "killed", one, tmp_path / "2"),
    )
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
    assert not Store(str(tmp_path / "killed")).exists("checkpoint", f"s/{one.name}")


def test_the_row_says_what_the_descendant_and_its_learngene_cost(tmp_path: Path) -> None:
    _, row = run(tmp_path / "store")
    assert row["flops"] == 6 * row["macs"] * row["images"] and row["images"] == 10 * 256
    assert [row[f"learngene_{name}"] for name in COST] == list(COST.values())
    assert row["fit_steps"] == row["fit_flops"] == row["teacher_flops"] == 0


def test_a_published_descendant_is_not_trained_again(tmp_path: Path) -> None:
    def never(metrics: dict[str, Any]) -> None:
        raise AssertionError("trained again")

    _, row = run(tmp_path / "store")
    assert run(tmp_path / "store", report=never)[1] == row


def test_reports_inside_an_epoch_come_without_a_score(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer, "REPORT_SECONDS", 0)
    seen: list[dict[str, Any]] = []
    run(tmp_path / "store", report=seen.append)
    assert [metrics["epoch"] for metrics in seen if "top1" in metrics] == [0, 1, 2]
    assert len([metrics for metrics in seen if "top1" not in metrics]) == 8


def test_scratch_claims_no_learngene(tmp_path: Path) -> None:
    one, row = run(tmp_path / "store", arm="scratch")
    assert all(row[name] is None for name in LEARNGENE_COLUMNS)
    card = Store(str(tmp_path / "store")).read_bytes("descendant", f"s/{one.name}", "README.md").decode()
    assert "Initialised by `scratch`, then tuned" in card


def test_another_label_set_gets_a_fresh_head_that_the_seed_decides(tmp_path: Path) -> None:
    learngene = inputs(tmp_path / "store")[2].learngene
    method = create_method("sws")
    torch.manual_seed(1)
    one = method.expand(learngene.without_head(), SPEC, seed=3)
    torch.manual_seed(2)
    two = method.expand(learngene.without_head(), SPEC, seed=3)
    assert torch.equal(one.head.weight, two.head.weight)
    assert torch.equal(one.head.weight, build(SPEC, seed=3).head.weight)
    assert torch.equal(one.blocks[0].attn.qkv.weight, learngene.tensors["blocks.0.attn.qkv.weight"])


def test_two_runs_of_one_descendant_at_once_both_end_well(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    other: list[dict[str, Any]] = []

    def report(metrics: dict[str, Any]) -> None:
        if metrics.get("epoch") == 2:  # the last one: the other run overtakes this one here
            other.append(run(tmp_path / "store")[1])

    one, row = run(tmp_path / "store", report=report)
    assert [row] == other
    assert caplog.messages == [f"s/{one.name} was published meanwhile by another run of this sweep: it counts"]
    store = Store(str(tmp_path / "store"))
    assert store.exists("descendant", f"s/{one.name}") and not store.exists("checkpoint", f"s/{one.name}")
    assert store.broken() == []

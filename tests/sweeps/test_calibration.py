"""What a sweep will cost, and that finding out trains nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ray_learngene as lg
from ray_learngene.cli.main import main
from ray_learngene.config import SweepConfig
from ray_learngene.pages.spending import spending_lines
from ray_learngene.store.store import Store
from ray_learngene.sweeps import calibration
from ray_learngene.sweeps.calibration import Pace, add_up, measure, seconds_of
from ray_learngene.sweeps.packing import Place
from ray_learngene.sweeps.prepare import prepare
from tests.fixtures.write_store import OLD_STORE
from tests.pages.rows import data_of

DIGITS: dict[str, Any] = {
    **{"data": "digits", "train_share": 0.1, "val_share": 0.1, "batch_size": 32, "depths": "1,2", "in_process": True},
    **{"learngene": "sws", "scratch": "epochs"},
}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    shutil.copytree(OLD_STORE, tmp_path / "store")
    return Store(str(tmp_path / "store"))


def prepared(store: Store, **settings: Any) -> Any:
    config = SweepConfig(**DIGITS | {"store": store.uri, "name": "planned", "epochs": 3} | settings)
    return prepare(config, store)


def files_of(store: Store) -> set[str]:
    return {str(path) for path in Path(store.uri).rglob("*") if path.is_file()}


def test_costs_add_up(store: Store) -> None:
    sweep = prepared(store, arms=("sws", "scratch"), seeds=2, siblings=1, cpus_per_trial=2)
    pace = Pace(read=np.array([0.5, 0.25]), step=np.array([1.0, 0.5]), score=np.array([10.0, 5.0]))
    paces = {trial: pace for trial in sweep.wanted if trial.seed == 0}
    cost = add_up(sweep.inputs, sweep.wanted, paces, Place(3, 1e9), 0.0, "cpu x", 0.5, 2.0)
    each = 4 * 10 + 3 * 4 * 1.5  # four scorings, three epochs of four steps
    assert [(one.seconds, one.device_seconds, one.count) for one in cost.descendants] == [(each, each / 2, 2)] * 4
    assert cost.device_seconds == 8 * each / 2  # of the CPU, which worked for half of the time
    assert cost.device_hours == pytest.approx(2 * 8 * each / 3600)
    assert cost.hours == pytest.approx(3 * each / 3600)  # eight on three places
    assert cost.price == pytest.approx(2 * cost.device_hours)
    alone = seconds_of(sweep.inputs, sweep.wanted[0], pace, 5)
    assert alone.tolist() == pytest.approx([4 * 10 + 12 * 1.1, 4 * 5 + 12 * 0.55])  # five read each batch once


def test_a_search_costs_as_often_as_it_tries(store: Store) -> None:
    pace = Pace(np.zeros(2), np.ones(2), np.ones(2))
    once, searched = prepared(store, siblings=1), prepared(store, siblings=1, lr_search=3, in_process=False)
    costs = [
        add_up(sweep.inputs, sweep.wanted, dict.fromkeys(sweep.wanted, pace), Place(1, 1e9), 1.0, "gpu", 0, None)
        for sweep in (once, searched)
    ]
    assert costs[1].device_hours == pytest.approx(3 * costs[0].device_hours) and costs[1].price is None


def test_a_fitted_size_is_measured_with_its_fitting(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    lg.extract(name="grown", method="ligo", source="store:ancestries/vit", store=store)
    sweep = prepared(store, learngene="grown", arms=("ligo:fit=9", "scratch"), depths="3")
    reads, read_pace = list[Any](), calibration._read_pace

    def read_for_nothing(*given: Any) -> Any:
        """On a busy machine the seconds of reading, which are taken off, may be more than those of a small step."""
        reads.extend(read_pace(*given))
        return np.zeros(2)

    monkeypatch.setattr(calibration, "_read_pace", read_for_nothing)
    paces, device, load = measure(sweep.inputs, sweep.wanted)
    assert device.startswith("cpu") and load >= 0 and min(reads) > 0
    for trial, pace in zip(sweep.wanted, paces, strict=True):
        assert min(pace.score) > 0 and (pace.step >= 0).all()
        assert np.all(pace.fit > 0) == (trial.arm.text != "scratch")


def test_a_plan_is_measured_printed_and_kept_and_trains_nothing(
    store: Store, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    before = files_of(store)
    # as the sweep of the old store was trained
    words = "--data digits --train-share 0.1 --val-share 0.1 --batch-size 32 --lr 3e-2 --warmup-epochs 0 --epochs 1"
    flags = ["--learngene", "sws", "--store", store.uri, "--name", "sizes", "--depths", "1,2", "--arms", "sws"]
    flags += [*words.split(), "--in-process"]
    assert main(["plan", *flags, "--calibrate", "--price-per-hour", "3.5"]) == 0
    printed = capsys.readouterr().out
    assert "CPU-hours" in printed and "the learngene has cost" in printed and ", price " in printed
    assert {path.removeprefix(f"{store.uri}/") for path in files_of(store) - before} == {"sweeps/sizes/plan.json"}
    kept = json.loads(store.read_text("sweeps/sizes/plan.json") or "")
    assert (
        kept["price"] == pytest.approx(3.5 * kept["device_hours"], rel=0.5, abs=1e-3) and kept["price_per_hour"] == 3.5
    )
    page = lg.page(store, out=tmp_path / "page.html").read_text()
    (planned,) = [one["planned"] for one in data_of(page)["sweeps"].values()]
    assert {(one["arm"], one["size"], one["count"]) for one in planned["models"]} == {
        ("sws", "16×1", 1),
        ("sws", "16×2", 1),
    }
    assert all(one["seconds"] > 0 for one in planned["models"])


def test_a_learngene_that_is_not_there_yet_is_planned_with_its_distillation(
    store: Store, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    digits = {name: DIGITS[name] for name in ("data", "train_share", "val_share", "batch_size")}
    sizes = {
        "ancestry": "store:ancestries/vit",
        "preset": "nano",
        "depth": 2,
        "width": 16,
        "method": "any-size:shallowest=1",
    }
    recipe = tmp_path / "distill.yaml"
    recipe.write_text(json.dumps({**digits, **sizes, "name": "later", "epochs": 6, "workers": 0}))
    settings = {
        **DIGITS,
        "learngene": "later",
        "arms": ["any-size", "scratch"],
        "name": "sizes-of-it",
        "scratch": "cost",
    }
    planned = lg.plan(**settings, store=store, epochs=2, calibrate=True, distill=str(recipe), price_per_hour=2.0)
    cost = planned.cost
    assert cost and cost.distillation and planned.learngene_seconds is None
    distilled = cost.distillation
    assert (distilled.learngene, distilled.workers) == ("later", 1) and distilled.seconds > 0
    assert distilled.price == pytest.approx(2 * distilled.seconds / 3600)
    assert min(planned.scratch_epochs.values()) > 2  # its share of a learngene that is not there yet
    assert store.look_up("learngene", "later") is None
    flags = ["--store", store.uri, "--learngene", "later", "--depths", "1", "--in-process"]
    flags += ["--data", "digits", "--train-share", "0.1", "--val-share", "0.1", "--batch-size", "32"]
    assert main(["plan", *flags, "--arms", "any-size", "--calibrate", "--distill", str(recipe)]) == 0
    printed = capsys.readouterr().out
    assert "the distillation: " in printed and "with the sweep" in printed and "the learngene has cost" not in printed
    assert main(["plan", *flags, "--distill", str(recipe)]) == 2 and "give calibrate too" in capsys.readouterr().err
    lg.distill(**digits, **sizes, name="later", epochs=6, workers=0, store=store)
    lg.sweep(**settings, store=store, epochs=2)
    page = store.read_text("sweeps/sizes-of-it/leaderboard.html") or ""
    shown = data_of(page)["sweeps"]["sizes-of-it"]["planned"]
    learngene = store.manifest("learngene", "later").metadata["cost"]
    assert shown["unit"] == "CPU" and 0 < learngene["load"] == shown["distillation"]["load"]
    assert shown["distillation"]["seconds"] == pytest.approx(distilled.device_seconds, rel=0.01)
    assert shown["distillation"]["spent"] == pytest.approx(learngene["device_seconds"])
    found = {(row["arm"], row["depth"]): row for row in store.rows("sizes-of-it")}
    for one in shown["models"]:
        row = found[one["arm"], int(one["size"].split("×")[1])]
        assert one["trained"] == 1 and one["load"] == pytest.approx(row["load"], abs=1e-3)
        assert one["spent"] == pytest.approx(row["device_seconds"] + row["fit_device_seconds"], rel=1e-3)
    capsys.readouterr()
    assert main(["show", "sweeps/sizes-of-it", "--store", store.uri]) == 0
    first, second = capsys.readouterr().out.splitlines()[-2:]
    assert first.startswith("the distillation: ") and second.startswith("4 descendants: ") and "CPU seconds" in second
    assert main(["show", "learngenes/later", "--store", store.uri]) == 0
    assert "CPU or GPU seconds, load " in capsys.readouterr().out
    spent = learngene["seconds"]
    again = lg.plan(**settings, store=store, epochs=2, calibrate=True, distill=str(recipe))  # it is there now
    assert again.cost and again.cost.distillation is None and again.learngene_seconds == pytest.approx(spent)
    settings["learngene"] = "sws"
    with pytest.raises(lg.UserError, match="it makes the learngene 'later', not 'sws', of which the sweep is"):
        lg.plan(**settings, store=store, calibrate=True, distill=str(recipe))


def test_what_an_earlier_version_planned_or_trained_is_compared_by_the_clock(store: Store, tmp_path: Path) -> None:
    """The rows of the old store hold no seconds of the device."""
    kinds = [{**row, "count": 1, "seconds": 2.0, "device_seconds": 1.0} for row in store.rows("sizes")]
    store.write_text("sweeps/sizes/plan.json", json.dumps({"descendants": kinds, "device": "cpu x", "load": 1.0}))
    planned = data_of(lg.page(store, out=tmp_path / "page.html").read_text())["sweeps"]["sizes"]["planned"]
    own = {(row["arm"], row["depth"]): row["seconds"] for row in store.rows("sizes")}
    assert planned["unit"] is None and len(planned["models"]) == 4
    for one in planned["models"]:
        assert (one["seconds"], one["load"]) == (2.0, None)
        assert one["spent"] == pytest.approx(own[one["arm"], int(one["size"].split("×")[1])], rel=1e-2)
    assert all("seconds by the clock" in line for line in spending_lines(store, "sizes"))


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"descendants": 3}', '{"descendants": [3, {"arm": 1}]}'])
def test_a_damaged_plan_is_not_shown(damage: str, store: Store, tmp_path: Path) -> None:
    store.write_text("sweeps/sizes/plan.json", damage)
    sweep = data_of(lg.page(store, out=tmp_path / "page.html").read_text())["sweeps"]["sizes"]
    assert "planned" not in sweep or [one["arm"] for one in sweep["planned"]["models"]] == [None]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--calibrate"], "give data"),
        (["--price-per-hour", "2", "--data", "digits"], "give calibrate too"),
        (["--calibrate", "--data", "digits", "--name", "a/b", "--in-process"], "is not the name"),
    ],
)
def test_mistakes_are_one_line(flags: list[str], said: str, store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--learngene", "sws", "--store", store.uri, "--depths", "1", *flags]) == 2
    assert said in (text := capsys.readouterr().err) and text.count("\n") == 1

"""Sweeps on real Ray: Tune, a killed process, searched learning rates, a submitted job."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas
import pytest
import timm

from ray_learngene.cli.pull import pull
from ray_learngene.config import DistillConfig, EvaluateConfig, PlanConfig, PullConfig, SweepConfig
from ray_learngene.delivery.evaluate import evaluate_model
from ray_learngene.errors import Interrupted
from ray_learngene.store.store import Store
from tests.pages.rows import data_of, models_of
from tests.ray_jobs.conftest import QUICK, RAY, ROOT

pytestmark = pytest.mark.usefixtures("connected")


@pytest.fixture(scope="module")
def swept(sweep_config: SweepConfig) -> tuple[pandas.DataFrame, list[dict[str, Any]]]:
    """The table of a sweep, and the results that the caller's callback saw. Latency is not measured in the driver."""
    from ray import tune

    from ray_learngene.sweeps import latency
    from ray_learngene.sweeps.sweep import sweep

    seen: list[dict[str, Any]] = []

    class Results(tune.Callback):
        def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: dict[str, Any], **info: Any) -> None:
            seen.append(result)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(latency, "measure_latency", lambda *args, **options: pytest.fail("measured in the driver"))
        return sweep(sweep_config, [Results()]), seen


def test_a_plan_is_measured_by_the_workers_and_trials_that_will_run(
    learngene: DistillConfig, sweep_config: SweepConfig
) -> None:
    from ray_learngene.distillation.calibration import plan_distillation
    from ray_learngene.sweeps.plan import plan

    distillation, _ = plan_distillation(learngene.model_copy(update={"name": "planned"}))
    assert distillation.workers == 2 and min(distillation.seconds, distillation.device_seconds) > 0
    settings = {"learngene": "digits", "store": sweep_config.store, "address": sweep_config.address, "arms": ("sws",)}
    cost = plan(PlanConfig(**QUICK, **settings, depths="2", epochs=1, calibrate=True)).cost
    assert cost and len(cost.descendants) == 1
    assert min(cost.descendants[0].seconds, cost.descendants[0].device_seconds, cost.hours) > 0


def test_a_sweep_publishes_every_descendant_and_its_table(
    sweep_config: SweepConfig, swept: tuple[pandas.DataFrame, list[dict[str, Any]]], tmp_path: Path
) -> None:
    table, seen = swept
    finished = [result for result in seen if result.get("finished")]
    assert {result["descendant"] for result in finished} == set(table["descendant"])  # the caller's callback ran
    store = Store(sweep_config.store)
    manifests = store.manifests("descendant", under="digits")
    assert sorted(table["depth"]) == [2, 2, 3, 3] and set(table["arm"]) == {"sws", "scratch"}
    assert {one.name.split("/")[1] for one in manifests} == set(table["descendant"])
    saved = store.read_table("sweeps/digits/results.parquet").to_pandas()
    assert len(saved) == 4 and (saved["status"] == "finished").all()
    assert {"top1_untuned", "top1_epoch1", "top1", "params", "macs", "memory", "latency", "latency_p90", "steps"} <= {
        *saved
    }
    assert (saved["steps"] == 11).all() and (saved["images"] == 11 * 128).all()
    assert (saved["latency_runs"] > 1).all() and (saved["latency"] > 0).all() and set(saved["latency_clock"]) == {"cpu"}
    assert (saved[["device_seconds", "load"]] > 0).all(axis=None)  # of the process of each trial
    page = store.read_text("sweeps/digits/leaderboard.html") or ""
    assert {model["name"] for model in models_of(page)} == {*saved["descendant"]}
    assert data_of(page)["sweeps"]["digits"]["running"] is None
    assert [one["name"] for one in data_of(page)["ancestries"]] == ["digits"]
    # the untuned three-layer descendant has the auxiliary's own layout: it is the auxiliary
    gene = store.manifest("learngene", "digits").metadata
    same = saved[(saved["arm"] == "sws") & (saved["depth"] == 3)].iloc[0]
    assert same["top1_untuned"] == pytest.approx(gene["metrics"]["top1"], abs=1e-6)
    assert same["learngene_version"] == store.manifest("learngene", "digits").version
    # pulled by budget, it is a plain timm model of the published accuracy
    folder = pull(PullConfig(store=sweep_config.store, max_params="60k", out=str(tmp_path / "model")))
    best = saved[saved["params"] <= 60_000].sort_values("top1").iloc[-1]
    assert json.loads((folder / "metrics.json").read_text())["row"]["descendant"] == best["descendant"]
    scores = evaluate_model(EvaluateConfig(model=str(folder), data="digits"))
    assert scores.top1 == pytest.approx(best["top1"], abs=1e-6)
    model = timm.create_model(f"local-dir:{folder}", pretrained=True)
    assert sum(parameter.numel() for parameter in model.parameters()) == best["params"]
    assert f"`{best['arm']}`" in (folder / "README.md").read_text()


@pytest.mark.usefixtures("swept")
def test_tunes_pickle_in_the_store_holds_no_learngene(sweep_config: SweepConfig) -> None:
    runs, files = Store(sweep_config.store).ray_storage("sweep-digits")
    assert files is not None
    weights = Store(sweep_config.store).manifest("learngene", "digits").files
    with files.open_input_stream(f"{runs}/sweep-digits/tuner.pkl") as stream:
        assert len(stream.read()) < 20_000 < max(file.bytes for file in weights)


@pytest.mark.usefixtures("swept")
def test_a_sweep_run_again_trains_only_what_is_missing(
    sweep_config: SweepConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    from ray_learngene.sweeps.sweep import sweep

    store = Store(sweep_config.store)
    before = {one.name: one.created for one in store.manifests("descendant", under="digits")}
    store.remove("descendant", min(before))
    table = sweep(sweep_config)
    after = {one.name: one.created for one in store.manifests("descendant", under="digits")}
    assert "1 descendant to train, 3 already finished" in capsys.readouterr().out
    assert after.keys() == before.keys() and len(table) == 4
    assert [name for name in after if after[name] != before[name]] == [min(before)]


def test_the_places_of_a_cluster() -> None:
    import ray

    from ray_learngene.sweeps.capacity import cluster_place

    counts = [cluster_place(cpus, 0, most).count for cpus, most in ((1, 0), (0.5, 0), (1, 1), (3, 0))]
    one, two = (cluster_place(cpus, 0, 0).memory for cpus in (1, 2))
    (node,) = ray.nodes()
    assert counts == [2, 4, 1, 1]
    assert 0 < one < node["Resources"]["memory"] / 2 < two < node["Resources"]["memory"]


@pytest.mark.slow
@pytest.mark.usefixtures("swept")
def test_a_pack_whose_process_is_killed_goes_on_with_those_that_have_not_finished(
    sweep_config: SweepConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from ray_learngene.sweeps import tune_callbacks
    from ray_learngene.sweeps.sweep import sweep

    killed: list[int] = []

    class Killing(tune_callbacks.SweepProgress):
        def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: dict[str, Any], **info: Any) -> None:
            super().on_trial_result(iteration, trials, trial, result, **info)
            if result.get("finished") and not killed:
                killed.append(result["pid"])
                os.kill(result["pid"], signal.SIGKILL)

    monkeypatch.setattr(tune_callbacks, "SweepProgress", Killing)
    table = sweep(sweep_config.model_copy(update={"name": "killed", "siblings": 4, "max_failures": 1}))
    said = capsys.readouterr().out
    assert killed and "up to 4 of them train side by side" in said
    assert [said.count(f"[{number}/4]") for number in (1, 2, 3, 4)] == [1, 1, 1, 1]
    assert (table["status"] == "finished").all() and len(table) == 4
    assert hashes(sweep_config, "killed") == hashes(sweep_config, "digits"), "of other siblings, never killed"


def hashes(config: SweepConfig, name: str) -> dict[str, str]:
    """Of the weights of a sweep's descendants."""
    return {
        one.name.split("/")[1]: next(e.sha256 for e in one.files if e.path.endswith("model.safetensors"))
        for one in Store(config.store).manifests("descendant", under=name)
    }


@pytest.mark.slow
@pytest.mark.parametrize(  # Ctrl-C reaches a driver in the tests of a benchmark too
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.hosts)]
)
def test_a_signal_to_the_driver_leaves_checkpoints_of_all_that_runs(
    number: signal.Signals,
    sweep_config: SweepConfig,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from ray_learngene.sweeps import tune_callbacks
    from ray_learngene.sweeps.sweep import sweep

    epochs: list[tuple[float, float]] = []

    class Ending(tune_callbacks.SweepProgress):
        def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: dict[str, Any], **info: Any) -> None:
            super().on_trial_result(iteration, trials, trial, result, **info)
            if not (result.get("finished") or result.get("interrupted")):
                epochs.append((trial.config["one"]["pack"][0].seed, result["epoch"]))
                if len(epochs) == 6:  # once: a second one ends it at once
                    os.kill(os.getpid(), number)

    monkeypatch.setattr(tune_callbacks, "SweepProgress", Ending)
    changes = {"budgets": (), "depths": "2", "arms": ("sws",), "seeds": 3, "siblings": 1, "epochs": 16}
    config = sweep_config.model_copy(update={**changes, "name": f"ended-{number}", "checkpoint_seconds": 10**6})
    with pytest.raises(Interrupted) as interrupted:
        sweep(config)
    assert (interrupted.value.done, interrupted.value.total, interrupted.value.of) == (0, 3, "descendant")
    assert len(Store(config.store).manifests("descendant", under=config.name)) == 0
    capsys.readouterr()
    sweep(config.model_copy(update={"max_concurrent": 1}))  # one process for all three
    assert re.search(
        r"2 of them continue from checkpoints: \S+ from step \d+ of 176, \S+ from", capsys.readouterr().out
    )
    assert sorted(epochs) == [(seed, epoch) for seed in range(3) for epoch in range(17)], "none was trained twice"
    sweep(config.model_copy(update={"name": "calm", "siblings": 3, "in_process": True}))
    assert hashes(config, config.name) == hashes(config, "calm")


def test_learning_rates_are_searched_inside_each_descendants_own_group(sweep_config: SweepConfig) -> None:
    from ray_learngene.sweeps.sweep import sweep

    config = sweep_config.model_copy(
        update={
            "name": "search",
            "lr_search": 3,
            "asha": True,
            "epochs": 2,
            "budgets": ("params<=60k",),
            "lr_low": 1e-4,
            "max_concurrent": 1,
        }
    )
    table = sweep(config)
    assert len(table) == 6
    for _, group in table.groupby("arm"):
        assert group["lr"].nunique() == 3
        assert group["lr"].between(1e-4, 1e-2).all()
        assert (group["status"] == "finished").any()
    again = sweep(config)
    finished = table[table["status"] == "finished"]
    assert set(finished["descendant"]) <= set(again["descendant"].dropna())


@pytest.mark.slow
def test_learning_rates_are_searched_side_by_side_with_the_same_results(
    sweep_config: SweepConfig, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray_learngene.sweeps import learning_rates, tune_search
    from ray_learngene.sweeps.sweep import sweep

    for module in (learning_rates, tune_search):
        monkeypatch.setattr(module, "DRAWN", 2)  # the third follows from the scores of two
    changes = {"lr_search": 2, "epochs": 1, "budgets": ("params<=60k",), "lr_low": 1e-4}
    config = sweep_config.model_copy(update={**changes, "name": "together", "siblings": 4})
    table = sweep(config)
    assert "up to 4 of them train side by side" in capsys.readouterr().out
    assert len(table) == 4 and (table["status"] == "finished").all()
    assert (table.groupby("arm")["lr"].nunique() == 2).all()
    sweep(config.model_copy(update={"name": "alone", "siblings": 1, "max_concurrent": 1}))
    assert hashes(config, "together") == hashes(config, "alone")
    sweep(config.model_copy(update={"lr_search": 3}))  # goes on where the first search ended
    assert hashes(config, "together").keys() > hashes(config, "alone").keys()
    assert len(hashes(config, "together")) == 6


def test_a_failed_descendant_is_told_and_the_others_are_published(sweep_config: SweepConfig) -> None:
    from ray_learngene.errors import UserError
    from ray_learngene.sweeps.sweep import sweep

    # a learning rate that explodes: with the same settings the guard stops both arms
    config = sweep_config.model_copy(
        update={"name": "explodes", "lr": 1e30, "min_lr": 1e29, "budgets": ("params<=60k",), "max_concurrent": 1}
    )
    with pytest.raises(UserError, match="2 of 2 descendants failed: the loss is not finite"):
        sweep(config)
    saved = Store(config.store).read_table("sweeps/explodes/results.parquet").to_pandas()
    assert (saved["status"] == "diverged").all() and saved["error"].str.contains("lower --lr").all()
    assert Store(config.store).manifests("descendant", under="explodes") == []


def test_a_job_is_submitted_to_the_head(sweep_config: SweepConfig, head: tuple[str, str]) -> None:
    arguments = ["--data", "digits", "--name", "job", "--learngene", "digits", "--store", sweep_config.store]
    arguments += ["--depths", "1", "--arms", "sws", "--epochs", "1", "--batch-size", "256", "--drop-path", "0"]
    ran = subprocess.run(
        [RAY, "job", "submit", "--address", head[1], "--runtime-env", "jobs/runtime_env.yaml"]
        + ["--", sys.executable, "-m", "jobs.sweep", *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=900,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "sweep job: 1 descendant to train" in ran.stdout
    assert [one.metadata["row"]["depth"] for one in Store(sweep_config.store).manifests("descendant", under="job")] == [
        1
    ]

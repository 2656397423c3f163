"""The product on real Ray: distillation by Train and DeepSpeed, sweeps by Tune, jobs submitted to a started head.

One head serves the whole file; the store is a real S3 server's bucket.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from ray_learngene import costs
from ray_learngene.catalog import pull
from ray_learngene.config import (
    AncestryConfig,
    DistillConfig,
    EvaluateConfig,
    PullConfig,
    SoftLabelsConfig,
    SweepConfig,
)
from ray_learngene.evaluate import evaluate_model
from ray_learngene.methods import Learngene
from ray_learngene.store import Store
from tests.cluster.policy import refused
from tests.conftest import S3Server, free_ports
from tests.s3_recorder import Recorder, recorded

ROOT = Path(__file__).parent.parent
QUICK = {
    "data": "digits",
    "batch_size": 128,
    "lr": 4e-3,
    "warmup_epochs": 0,
    "drop_path": 0.0,
    "hflip": 0.0,
    "scale": (0.9, 1.0),
}
RAY = str(Path(sys.executable).with_name("ray"))


@pytest.fixture(scope="module")
def recorder(s3_server: S3Server) -> Iterator[Recorder]:
    """Notes what all of these tests ask of the S3 server."""
    with recorded(s3_server.endpoint) as recorder:
        yield recorder


@pytest.fixture(scope="module")
def s3_store(s3_server: S3Server, recorder: Recorder) -> Iterator[str]:
    """A bucket, reached through the standard AWS variables, which Ray's processes inherit."""
    variables = {
        "AWS_ENDPOINT_URL": recorder.endpoint,
        "AWS_ACCESS_KEY_ID": s3_server.access_key,
        "AWS_SECRET_ACCESS_KEY": s3_server.secret,
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    before = {name: os.environ.get(name) for name in variables}
    os.environ |= variables
    yield f"s3://{s3_server.new_bucket()}/store"
    for name, value in before.items():
        if value is None:
            del os.environ[name]
        else:
            os.environ[name] = value


@pytest.fixture(scope="module")
def head(s3_store: str) -> Iterator[tuple[str, str]]:
    """Addresses of a started head: for drivers, and for job submission."""
    gcs, dashboard, agent = free_ports(3)
    command = [RAY, "start", "--head", "--node-ip-address=127.0.0.1", f"--port={gcs}", "--num-cpus=2", "--num-gpus=0"]
    command += [f"--dashboard-port={dashboard}", "--dashboard-host=127.0.0.1", "--disable-usage-stats", "--block"]
    command += [f"--dashboard-agent-listen-port={agent}"]  # its default may belong to another cluster on this machine
    process = subprocess.Popen(  # a session of its own, so that all of the head's processes end with it
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT, start_new_session=True
    )
    assert process.stdout is not None
    for line in process.stdout:
        if "Ray runtime started" in line:
            break
    else:
        pytest.fail("ray start --head ended without starting")
    try:
        yield f"127.0.0.1:{gcs}", f"http://127.0.0.1:{dashboard}"
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.fixture(scope="module")
def ancestry(s3_store: str) -> str:
    from ray_learngene.ancestry_training import train_ancestry

    size = {"img_size": 8, "patch_size": 2, "embed_dim": 48, "depth": 2, "num_heads": 3}
    arguments = {**size, "class_token": False, "global_pool": "avg"}
    train_ancestry(
        AncestryConfig(
            **QUICK,
            name="digits",
            store=s3_store,
            workers=0,
            epochs=3,
            model="deit_tiny_patch16_224",
            model_args=arguments,
        )
    )
    return "store:ancestries/digits"


@pytest.fixture(scope="module")
def learngene(head: tuple[str, str], ancestry: str, s3_store: str) -> DistillConfig:
    from ray_learngene.distill import distill

    config = DistillConfig(
        **QUICK,
        name="digits",
        store=s3_store,
        ancestry=ancestry,
        preset="nano",
        method="sws:stages=1-1-1",
        epochs=3,
        workers=2,
        ema=0.9,
        mixup=0.2,
        address=head[0],
    )
    distill(config)
    return config


def test_distillation_publishes_a_learngene(
    learngene: DistillConfig, s3_store: str, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = Store(s3_store).manifest("learngene", "digits")
    facts = manifest.metadata
    spec = Learngene.from_bytes(
        *(Store(s3_store).read_bytes("learngene", "digits", f"learngene.{kind}") for kind in ("safetensors", "json"))
    ).spec
    teacher = costs.macs(spec.replace(depth=2))
    assert facts["cost"] == {
        **{"steps": 33, "images": 33 * 128, "seconds": facts["cost"]["seconds"]},
        **{"flops": 6 * costs.macs(spec) * 33 * 128, "teacher_flops": 2 * teacher * 33 * 128},
    }
    assert len(facts["history"]) == 3
    assert {"distill_loss", "label_loss", "top1", "ema_top1"} <= facts["history"][-1].keys()
    assert facts["history"][-1]["loss"] < facts["history"][0]["loss"]
    assert facts["versions"].keys() >= {"torch", "timm", "ray", "deepspeed"}
    assert facts["config"]["seed"] == 0 and facts["ancestry"] == "store:ancestries/digits"
    assert [entry.path for entry in manifest.files] == [
        *("ema/learngene.json", "ema/learngene.safetensors", "learngene.json", "learngene.safetensors")
    ]
    weights, text = (
        Store(s3_store).read_bytes("learngene", "digits", f"learngene.{kind}") for kind in ("safetensors", "json")
    )
    gene = Learngene.from_bytes(weights, text)
    assert gene.spec.depth == 3 and gene.labels == tuple(str(digit) for digit in range(10))
    assert gene.parameters() == facts["parameters"]


def test_the_same_distillation_again_does_nothing_and_another_is_refused(learngene: DistillConfig) -> None:
    from ray_learngene.distill import distill
    from ray_learngene.errors import UserError

    before = Store(learngene.store).manifest("learngene", "digits")
    assert distill(learngene.model_copy(update={"workers": 4, "max_failures": 1})) == before
    with pytest.raises(UserError, match="made with other settings"):
        distill(learngene.model_copy(update={"epochs": 4}))


def test_two_workers_and_one_plain_process_distil_the_same_learngene(learngene: DistillConfig) -> None:
    from ray_learngene.distill import distill

    manifest = distill(learngene.model_copy(update={"workers": 0, "name": "plain"}))
    store = Store(learngene.store)
    one, two = (
        Learngene.from_bytes(
            *(store.read_bytes("learngene", name, f"learngene.{kind}") for kind in ("safetensors", "json"))
        )
        for name in ("digits", "plain")
    )
    for name, tensor in one.tensors.items():
        torch.testing.assert_close(tensor, two.tensors[name], rtol=0, atol=2e-4)
    together, alone = (store.manifest("learngene", name).metadata for name in ("digits", "plain"))
    assert alone["history"][0]["top1"] == pytest.approx(together["history"][0]["top1"], abs=0.6)
    assert manifest.name == "plain"


def test_soft_labels_computed_by_tasks_teach_two_workers_what_the_ancestry_does(learngene: DistillConfig) -> None:
    from ray_learngene.distill import distill
    from ray_learngene.soft_labels.fill import fill

    settings = {**learngene.model_dump(), "soft_labels": True, "soft_labels_dtype": "float32", "name": "taught"}
    fill(SoftLabelsConfig(**settings))
    taught = distill(DistillConfig(**settings))
    store = Store(learngene.store)
    weights = [store.read_bytes("learngene", name, "learngene.safetensors") for name in ("digits", "taught")]
    assert weights[0] == weights[1], "bit for bit"
    assert taught.metadata["cost"]["teacher_flops"] == 0
    computed = [manifest.metadata["cost"]["teacher_flops"] for manifest in store.manifests("softlabels")]
    assert (
        len(computed) == 3 * 2
        and sum(computed) == store.manifest("learngene", "digits").metadata["cost"]["teacher_flops"]
    )


@pytest.fixture(scope="module")
def sweep_config(learngene: DistillConfig, head: tuple[str, str]) -> SweepConfig:
    return SweepConfig(
        **{**QUICK, "lr": 1e-3},
        name="digits",
        store=learngene.store,
        learngene="digits",
        budgets=("params<=60k", "params<=90k,latency<=1s"),
        arms=("sws", "scratch"),
        epochs=1,
        latency_threads=1,
        address=head[0],
        max_failures=0,
    )


def test_a_sweep_publishes_every_descendant_and_its_table(sweep_config: SweepConfig, tmp_path: Path) -> None:
    from ray_learngene.sweep import sweep

    table = sweep(sweep_config)
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
    assert store.read_text("sweeps/digits/leaderboard.html").count("<tr>") == 5
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


def test_a_sweep_run_again_trains_only_what_is_missing(
    sweep_config: SweepConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    from ray_learngene.sweep import sweep

    store = Store(sweep_config.store)
    before = {one.name: one.created for one in store.manifests("descendant", under="digits")}
    store.remove("descendant", min(before))
    table = sweep(sweep_config)
    after = {one.name: one.created for one in store.manifests("descendant", under="digits")}
    assert "1 descendants to train, 3 already finished" in capsys.readouterr().out
    assert after.keys() == before.keys() and len(table) == 4
    assert [name for name in after if after[name] != before[name]] == [min(before)]


def test_the_places_of_a_cluster(head: tuple[str, str]) -> None:
    import ray

    from ray_learngene.cluster import ray_cluster
    from ray_learngene.places import cluster_place

    with ray_cluster(head[0]):
        counts = [cluster_place(cpus, 0, most).count for cpus, most in ((1, 0), (0.5, 0), (1, 1), (3, 0))]
        one, two = (cluster_place(cpus, 0, 0).memory for cpus in (1, 2))
        (node,) = ray.nodes()
    assert counts == [2, 4, 1, 1]
    assert 0 < one < node["Resources"]["memory"] / 2 < two < node["Resources"]["memory"]


def test_a_pack_whose_process_is_killed_goes_on_with_those_that_have_not_finished(
    sweep_config: SweepConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from ray_learngene import sweep_progress
    from ray_learngene.sweep import sweep

    killed: list[int] = []

    class Killing(sweep_progress.SweepProgress):
        def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: dict[str, Any], **info: Any) -> None:
            super().on_trial_result(iteration, trials, trial, result, **info)
            if result.get("finished") and not killed:
                killed.append(result["pid"])
                os.kill(result["pid"], signal.SIGKILL)

    monkeypatch.setattr(sweep_progress, "SweepProgress", Killing)
    table = sweep(sweep_config.model_copy(update={"name": "killed", "siblings": 4, "max_failures": 1}))
    said = capsys.readouterr().out
    assert killed and "up to 4 of them train side by side" in said
    assert [said.count(f"[{number}/4]") for number in (1, 2, 3, 4)] == [1, 1, 1, 1]
    assert (table["status"] == "finished").all() and len(table) == 4
    store = Store(sweep_config.store)

    def weights(sweep_name: str) -> dict[str, str]:
        found = store.manifests("descendant", under=sweep_name)
        return {
            one.name.split("/")[1]: next(e.sha256 for e in one.files if e.path.endswith("model.safetensors"))
            for one in found
        }

    assert weights("killed") == weights("digits"), "of another number of siblings, never killed: bit for bit"


def test_learning_rates_are_searched_inside_each_descendants_own_group(sweep_config: SweepConfig) -> None:
    from ray_learngene.sweep import sweep

    config = sweep_config.model_copy(
        update={
            "name": "search",
            "lr_search": 3,
            "asha": True,
            "epochs": 2,
            "budgets": ("params<=60k",),
            "lr_low": 1e-4,
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


def test_a_failed_descendant_is_told_and_the_others_are_published(sweep_config: SweepConfig) -> None:
    from ray_learngene.errors import UserError
    from ray_learngene.sweep import sweep

    # a learning rate that explodes: with the same settings the guard stops both arms
    config = sweep_config.model_copy(
        update={"name": "explodes", "lr": 1e30, "min_lr": 1e29, "budgets": ("params<=60k",)}
    )
    with pytest.raises(UserError, match="2 of 2 descendants failed: the loss is not finite"):
        sweep(config)
    saved = Store(config.store).read_table("sweeps/explodes/results.parquet").to_pandas()
    assert (saved["status"] == "failed").all() and saved["error"].str.contains("lower --lr").all()
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
        timeout=300,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "sweep job: 1 descendants to train" in ran.stdout
    assert [one.metadata["row"]["depth"] for one in Store(sweep_config.store).manifests("descendant", under="job")] == [
        1
    ]


def test_the_iam_policy_allows_all_that_distillation_and_sweeps_ask_for(
    sweep_config: SweepConfig, recorder: Recorder
) -> None:
    bucket, prefix = sweep_config.store.removeprefix("s3://").split("/", 1)
    assert any("/runs/learngene-digits/" in request.path for request in recorder.requests)
    ours = {request for request in recorder.requests if request.path.split("/")[0] == bucket}  # pyarrow tries another
    assert refused("store-policy.json", bucket, prefix, ours) == []


def test_a_cluster_that_does_not_answer() -> None:
    from ray_learngene.cluster import ray_cluster
    from ray_learngene.errors import UserError

    with (
        pytest.raises(UserError, match="no Ray cluster answers at 127.0.0.1"),
        ray_cluster(f"127.0.0.1:{free_ports(1)[0]}"),
    ):
        pass

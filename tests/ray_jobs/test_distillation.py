"""Distillation on real Ray: Train and DeepSpeed, with a real S3 server as the store."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from ray_learngene import sigterm
from ray_learngene.config import DistillConfig, SoftLabelsConfig
from ray_learngene.methods.base import Learngene
from ray_learngene.models import costs
from ray_learngene.store.store import Store
from tests.distillation.test_features import save_headless
from tests.ray_jobs.conftest import QUICK

pytestmark = pytest.mark.usefixtures("connected")


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
        **{"steps": 33, "images": 33 * 128},
        **{name: facts["cost"][name] for name in ("seconds", "device_seconds", "load")},
        **{"flops": 6 * costs.macs(spec) * 33 * 128, "teacher_flops": 2 * teacher * 33 * 128},
    }
    assert min(facts["cost"][name] for name in ("seconds", "device_seconds", "load")) > 0  # of all workers
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
    from ray_learngene.distillation.distill import distill
    from ray_learngene.errors import UserError

    before = Store(learngene.store).manifest("learngene", "digits")
    assert distill(learngene.model_copy(update={"workers": 4, "max_failures": 1})) == before
    with pytest.raises(UserError, match="made with other settings"):
        distill(learngene.model_copy(update={"epochs": 4}))


def test_two_workers_and_one_plain_process_distil_the_same_learngene(learngene: DistillConfig) -> None:
    from ray_learngene.distillation.distill import distill

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


@pytest.mark.slow
def test_two_workers_and_one_plain_process_teach_the_same_features(
    head: tuple[str, str], s3_store: str, tmp_path: Path
) -> None:
    from ray_learngene.distillation.distill import distill

    settings: dict[str, Any] = {
        **QUICK,
        **{"teach": "features", "ancestry": save_headless(tmp_path / "teacher"), "method": "any-size"},
        **{"preset": "nano", "depth": 3, "epochs": 1, "store": s3_store, "feature_layers": 2, "train_share": 0.3},
    }
    together, alone = (
        distill(DistillConfig(**settings, name=f"features-{workers}", workers=workers, address=head[0]))
        for workers in (2, 0)
    )
    weights, expected = (
        safetensors.torch.load(Store(s3_store).read_bytes("learngene", one.name, "learngene.safetensors"))
        for one in (together, alone)
    )
    assert weights.keys() == expected.keys()
    for name, tensor in weights.items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=2e-4)
    scores, others = together.metadata["metrics"], alone.metadata["metrics"]
    assert scores["val_loss"] == pytest.approx(others["val_loss"], rel=1e-3)
    assert scores == pytest.approx(others, abs=0.6)


@pytest.mark.slow
def test_workers_go_on_with_what_one_plain_process_has_begun(
    learngene: DistillConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    from ray.train import UserCallback

    from ray_learngene.distillation.distill import distill
    from ray_learngene.errors import Interrupted, UserError

    class Steps(UserCallback):  # runs in Ray Train's controller, another process
        def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
            with (tmp_path / "steps").open("a") as file:
                print(metrics[0]["step"], file=file)

    store, alone = Store(learngene.store), learngene.model_copy(update={"workers": 0, "name": "begun"})
    with monkeypatch.context() as patched, pytest.raises(Interrupted):
        patched.setattr(sigterm, "requested", lambda step: step == 20)
        distill(alone)
    first = json.loads(store.read_bytes("checkpoint", "learngene-begun/state", "progress.json"))["history"][0]
    with pytest.raises(UserError, match="^callbacks are Ray Train's: give workers=1 or more"):
        distill(alone, [Steps()])
    manifest = distill(alone.model_copy(update={"workers": 1}), [Steps()])
    assert (tmp_path / "steps").read_text().split()[-1] == "33"
    assert "continuing the run begun" in capsys.readouterr().out
    history = manifest.metadata["history"]
    assert history[0] == first and [entry["step"] for entry in history] == [11, 22, 33], "its seconds too"
    assert not store.exists("checkpoint", "learngene-begun/state")
    undisturbed, begun = (
        safetensors.torch.load(store.read_bytes("learngene", name, "learngene.safetensors"))
        for name in ("digits", "begun")
    )
    for name, tensor in undisturbed.items():
        torch.testing.assert_close(begun[name], tensor, rtol=0, atol=2e-4)
    # the other way round the process without Ray says that it cannot, and trains nothing
    store.remove("learngene", "begun")
    with pytest.raises(UserError, match="'begun' in .* has checkpoints of workers on Ray: go on with --workers 1"):
        distill(alone)


@pytest.mark.slow
def test_soft_labels_computed_by_tasks_teach_two_workers_what_the_ancestry_does(learngene: DistillConfig) -> None:
    from ray_learngene.distillation.distill import distill
    from ray_learngene.distillation.soft_labels import fill

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

"""Learngenes from trained models, what they cost, and distillation that starts from one."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pandas
import pytest
import torch

from ray_learngene.ancestry_training import train_ancestry
from ray_learngene.candidates import StoredLearngene
from ray_learngene.config import AncestryConfig, DistillConfig, ExtractConfig, SweepConfig
from ray_learngene.distill import distill
from ray_learngene.errors import UserError
from ray_learngene.extract import extract
from ray_learngene.store import Store
from ray_learngene.sweep import sweep

QUICK: dict[str, Any] = {
    **{"data": "digits", "batch_size": 512, "hflip": 0.0, "warmup_epochs": 0, "drop_path": 0.0, "crop_pct": 1.0},
    **{"epochs": 1, "workers": 0},
}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An ancestry that is a plain vision transformer of three layers, and one distilled model of two."""
    uri = str(tmp_path_factory.mktemp("extract") / "store")
    size = {"img_size": 8, "patch_size": 2, "embed_dim": 48, "depth": 3, "num_heads": 3}
    arguments = {**size, "class_token": False, "global_pool": "avg"}
    train_ancestry(AncestryConfig(**QUICK, name="vit", store=uri, model="deit_tiny_patch16_224", model_args=arguments))
    distill(distillation(uri, name="model", method="pretrained", depth=2))
    return uri


def distillation(store: str, **changes: Any) -> DistillConfig:
    return DistillConfig(**{**QUICK, "store": store, "ancestry": "store:ancestries/vit", "preset": "nano", **changes})


def extraction(store: str, **changes: Any) -> ExtractConfig:
    return ExtractConfig(**{"store": store, "source": "store:ancestries/vit", **changes})


@pytest.mark.parametrize("method", ["heur-lg", "auto-lg", "weight-selection", "pretrained", "ligo", "wave"])
def test_a_trained_model_gives_a_learngene_without_distillation(store: str, method: str, tmp_path: Path) -> None:
    manifest = extract(extraction(store, name=f"x-{method}", method=method))
    cost = manifest.metadata["cost"]
    assert cost["flops"] == cost["images"] == 0 and cost["seconds"] >= 0
    stored = StoredLearngene.load(Store(store), f"x-{method}")
    assert stored.learngene.method == method and stored.learngene.spec.depth == 3
    assert stored.learngene.labels == tuple(str(digit) for digit in range(10))
    assert stored.learngene.preprocessing["image_size"] == 8
    assert extract(extraction(store, name=f"x-{method}", method=method)) == manifest  # again: nothing to do


def test_a_learngene_of_a_distilled_model_has_cost_its_distillation(store: str) -> None:
    source = Store(store).manifest("learngene", "model").metadata
    manifest = extract(extraction(store, name="selected", method="weight-selection", source="store:learngenes/model"))
    assert manifest.metadata["cost"]["flops"] == source["cost"]["flops"] > 0
    assert manifest.metadata["cost"]["images"] == source["cost"]["images"]
    assert manifest.metadata["metrics"] == source["metrics"]


def test_what_cannot_be_extracted_is_said(store: str) -> None:
    with pytest.raises(UserError, match="'sws' needs an auxiliary model of its own"):
        extract(extraction(store, name="no", method="sws"))
    with pytest.raises(UserError, match="no ancestry 'gone'"):
        extract(extraction(store, name="no", method="wave", source="store:ancestries/gone"))
    extract(extraction(store, name="taken", method="heur-lg"))
    with pytest.raises(UserError, match="'taken' is already in .* made with other settings"):
        extract(extraction(store, name="taken", method="auto-lg"))
    distill(distillation(store, name="kept", method="heur-lg:keep=last1", depth=2))
    with pytest.raises(UserError, match="method 'heur-lg' does not determine a whole model"):
        extract(extraction(store, name="no", method="wave", source="store:learngenes/kept"))
    assert not Store(store).exists("learngene", "no")


def test_learngenes_of_differently_normalised_images_are_swept_apart(store: str) -> None:
    source = StoredLearngene.load(Store(store), "model").learngene
    with tempfile.TemporaryDirectory() as folder:
        preprocessing = {**source.preprocessing, "mean": [0.1, 0.1, 0.1]}
        source.describe(labels=source.labels, preprocessing=preprocessing).save(Path(folder))
        metadata = Store(store).manifest("learngene", "model").metadata
        Store(store).publish("learngene", "darker", Path(folder), metadata)
    config = SweepConfig(
        **{key: value for key, value in QUICK.items() if key != "workers"},
        **{"name": "dark", "store": store, "learngene": "model", "depths": "2", "in_process": True},
        arms=("pretrained", "pretrained@darker"),
    )
    with pytest.raises(UserError, match="'darker' was distilled with mean .*: sweep them apart"):
        sweep(config)


def test_distillation_starts_from_a_learngene(store: str) -> None:
    """The closed form of WAVE is the warm start of its distillation."""
    extract(extraction(store, name="warm", method="wave"))
    begun = distill(distillation(store, name="warmed", method="wave", depth=3, start="warm", epochs=0))
    assert begun.name == "warmed"
    before, after = (StoredLearngene.load(Store(store), name) for name in ("warm", "warmed"))
    assert all(torch.equal(x, after.learngene.tensors[name]) for name, x in before.learngene.tensors.items())
    trained = distill(distillation(store, name="further", method="pretrained", depth=2, start="model"))
    first, further = (StoredLearngene.load(Store(store), name).facts() for name in ("model", "further"))
    assert further["learngene_flops"] == first["learngene_flops"] + trained.metadata["cost"]["flops"]
    with pytest.raises(UserError, match="--start warm: a learngene of method 'wave' .* does not fit --method tleg"):
        distill(distillation(store, name="no", method="tleg", start="warm"))
    with pytest.raises(UserError, match="does not fit --method wave"):
        distill(distillation(store, name="no", method="wave", depth=5, start="warm"))


def test_arms_of_one_sweep_expand_their_own_learngenes_and_learn_from_a_teacher(store: str) -> None:
    for seed in range(2):
        distill(distillation(store, name=f"any-{seed}", method="any-size:shallowest=1", depth=3, seed=seed))
    extract(extraction(store, name="grown", method="ligo", source="store:learngenes/model"))
    config = SweepConfig(
        **{key: value for key, value in QUICK.items() if key != "workers"},
        name="arms",
        store=store,
        learngene="any-0",
        arms=("any-size@any-{seed}", "pretrained@model", "ligo:fit=2@grown", "scratch"),
        depths="2",
        seeds=2,
        ancestry="store:ancestries/vit",
        in_process=True,
    )
    table = sweep(config)
    by_arm = table.groupby("arm")["learngene"].agg(list)
    assert sorted(by_arm["any-size@any-{seed}"]) == ["any-0", "any-1"]
    assert pandas.isna(by_arm["scratch"]).all() and set(by_arm["pretrained@model"]) == {"model"}
    assert (table["teacher_flops"] > 0).all()
    fitted = table[table["arm"].str.startswith("ligo")]
    assert (fitted["fit_steps"] == 2).all() and (fitted["fit_flops"] > 0).all()
    assert (table[~table["arm"].str.startswith("ligo")]["fit_steps"] == 0).all()
    with pytest.raises(UserError, match="the learngene 'model' was made by 'pretrained', not by 'sws'"):
        sweep(config.model_copy(update={"name": "other", "arms": ("sws@model",)}))
    with pytest.raises(UserError, match="made with ancestry .*, not None|made with alpha"):
        sweep(config.model_copy(update={"ancestry": None}))

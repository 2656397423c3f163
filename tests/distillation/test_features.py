"""`learngene distill --teach features`: a teacher without a head, any folder of images, and what becomes of both."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.models import save_for_hf

from ray_learngene.cli.pull import pull
from ray_learngene.config import (
    DataConfig,
    DistillConfig,
    EvaluateConfig,
    ExpandConfig,
    PullConfig,
    SoftLabelsConfig,
    SweepConfig,
    load_config,
)
from ray_learngene.config.decides import RUN, decisive
from ray_learngene.data.open import open_image_sets
from ray_learngene.delivery.evaluate import evaluate_model
from ray_learngene.delivery.expand import expand
from ray_learngene.delivery.features import FeatureScores
from ray_learngene.distillation.distill import distill
from ray_learngene.errors import UserError
from ray_learngene.store.learngenes import StoredLearngene
from ray_learngene.store.store import Store
from ray_learngene.sweeps.sweep import sweep
from tests.ancestry.teachers import DATA, KINDS

SIZE = {"img_size": 8, "patch_size": 2, "embed_dim": 32, "depth": 2, "num_heads": 2}


def save_headless(folder: Path, kind: str = "") -> str:
    """Write a timm folder of a model of features and return the reference to it."""
    arguments, data = KINDS.get(kind, ({}, {}))
    arguments = {**SIZE, **arguments}
    torch.manual_seed(0)
    model = timm.create_model("vit_small_patch14_dinov2", num_classes=0, **arguments)
    config = {**DATA, **data}
    save_for_hf(model, str(folder), model_config={}, model_args=arguments, safe_serialization=True, data_config=config)
    return f"local-dir:{folder}"


def settings(tmp_path: Path, **changes: Any) -> dict[str, Any]:
    return {
        "name": "features",
        "store": str(tmp_path / "store"),
        "data": "digits",
        "train_share": 0.1,
        "val_share": 0.2,
        "preset": "nano",
        "depth": 3,
        "epochs": 1,
        "batch_size": 32,
        "warmup_epochs": 0,
        "workers": 0,
        "teach": "features",
        **changes,
    }


def test_a_headless_teacher_makes_a_learngene_whose_descendants_classify(tmp_path: Path) -> None:
    ancestry = save_headless(tmp_path / "teacher")
    config = DistillConfig(**settings(tmp_path, ancestry=ancestry, method="any-size", ema=0.9))
    manifest = distill(config)
    assert manifest.metadata["metrics"].keys() == {"knn", "linear", "val_loss", "ema_knn", "ema_linear"}
    assert manifest.metadata["labels"] == [] and manifest.metadata["spec"]["classes"] == 0
    assert manifest.metadata["cost"]["teacher_flops"] > 0
    assert distill(config) == manifest  # a finished run is found again
    learngene = StoredLearngene.load(Store(config.store), "features").learngene
    assert learngene.preprocessing["mean"] == [0.5, 0.5, 0.5]
    expanded = expand(
        ExpandConfig(store=config.store, learngene="features", depth=2, out=str(tmp_path / "e"), data="digits")
    )
    assert {name for name in ("knn", "linear") if expanded[0].facts[name] > 10} == {"knn", "linear"}
    assert timm.create_model(f"local-dir:{tmp_path / 'e'}", pretrained=True).num_classes == 0
    assert "image-feature-extraction" in (tmp_path / "e" / "README.md").read_text()
    scores = evaluate_model(EvaluateConfig(model=str(tmp_path / "e"), data="digits"))
    assert isinstance(scores, FeatureScores) and scores.knn == expanded[0].facts["knn"]
    table = sweep(
        SweepConfig(
            learngene="features", name="s", in_process=True, depths="3", arms="any-size", epochs=1,
            **{name: getattr(config, name) for name in ("store", "data", "train_share", "val_share", "batch_size")},
        ),
    )  # fmt: skip
    row = table.iloc[0]
    assert row["classes"] == 10
    out = pull(PullConfig(store=config.store, artefact=f"descendants/s/{row['descendant']}", out=str(tmp_path / "m")))
    model = timm.create_model(f"local-dir:{out}", pretrained=True)
    assert model.head.out_features == 10


def test_a_flat_folder_without_labels_is_enough(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    random = np.random.default_rng(0)
    (tmp_path / "photos" / "more").mkdir(parents=True)
    for index in range(40):
        place = tmp_path / "photos" / ("more" if index % 2 else "")
        Image.fromarray(random.integers(0, 255, (9, 12, 3), dtype=np.uint8)).save(place / f"{index}.png")
    data = {"data": str(tmp_path / "photos"), "train_share": 1.0, "val_share": 1.0, "batch_size": 16}
    ancestry = save_headless(tmp_path / "teacher")
    with caplog.at_level(logging.INFO):
        manifest = distill(DistillConfig(**settings(tmp_path, ancestry=ancestry, method="sws:stages=1-2", **data)))
    assert manifest.metadata["metrics"].keys() == {"val_loss"}
    assert "read without classes, as labels are not needed" in caplog.text
    assert "36 training and 4 validation images" in caplog.text
    with pytest.raises(UserError, match="is outside any class folder"):  # labels are needed elsewhere
        open_image_sets(DataConfig(data=str(tmp_path / "photos")))


@pytest.mark.parametrize("kind", ["one-channel", "non-square", "lanczos"])
def test_teachers_of_other_images_teach_features(kind: str, tmp_path: Path) -> None:
    ancestry = save_headless(tmp_path / kind, kind)
    config = DistillConfig(**settings(tmp_path, ancestry=ancestry, method="sws:stages=1-2", feature_layers=2))
    assert 0 < distill(config).metadata["metrics"]["val_loss"] < 10


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"teach": "logits"}, "the model has no classification head; a model of features teaches with"),
        ({"soft_labels": True}, r"--soft-labels caches logits: features of .* would take 139 kB an epoch in float16"),
        ({"layer_decay": 0.5}, "--layer-decay 0.5: the layers of this ElasticVisionTransformer share parameters"),
    ],
)
def test_what_a_headless_teacher_cannot_do_is_one_line(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    ancestry = save_headless(tmp_path / "teacher")
    with pytest.raises(UserError, match=says):
        distill(DistillConfig(**settings(tmp_path, ancestry=ancestry, **changes)))
    assert not (tmp_path / "store" / "learngenes").exists() and not (tmp_path / "store" / "runs").exists()


def test_settings_of_the_other_kind_of_teaching_are_refused(tmp_path: Path) -> None:
    given = settings(tmp_path, ancestry="a")
    with pytest.raises(UserError, match="alpha is for --teach logits: leave it out"):
        load_config(DistillConfig, {**given, "alpha": 0.5})
    with pytest.raises(UserError, match="feature_layers is for --teach features: leave it out"):
        load_config(DistillConfig, {**given, "teach": "logits", "feature_layers": 2})
    with pytest.raises(UserError, match="features are not cached"):
        load_config(SoftLabelsConfig, given)
    logits = DistillConfig(**{**given, "teach": "logits"})
    assert not {"teach", "feature_layers", "feature_loss", "feature_vector"} & decisive(logits, RUN).keys()

"""A distillation resizes its images as the ancestry model does, unless it is told or began otherwise."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from ray_learngene.config import DistillConfig
from ray_learngene.distillation.distill import distill, prepare
from ray_learngene.store.store import Store
from tests.ancestry.teachers import save_teacher


def settings(tmp_path: Path, kind: str, **changes: Any) -> DistillConfig:
    save_teacher(tmp_path / kind, kind)
    store, ancestry = str(tmp_path / "store"), f"local-dir:{tmp_path / kind}"
    sizes = {"preset": "nano", "depth": 1, "method": "pretrained", "epochs": 0, "batch_size": 32, "workers": 0}
    sizes |= {"labels": False, "check_images": "off", "train_share": 0.1, "val_share": 0.1}
    return DistillConfig(**{**sizes, "name": "x", "store": store, "ancestry": ancestry, "data": "digits", **changes})


@pytest.mark.parametrize(
    ("kind", "changes", "used"),
    [
        ("bilinear", {}, "bilinear"),
        ("lanczos", {}, "lanczos"),
        ("bilinear", {"interpolation": "bicubic"}, "bicubic"),
        ("random", {}, "bicubic"),  # timm's training chooses one of several
    ],
)
def test_images_are_resized_as_the_teachers_were(
    kind: str, changes: dict[str, Any], used: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "ray_learngene"):
        task = prepare(settings(tmp_path, kind, **changes))
    assert task.images.preprocessing.interpolation == task.config.interpolation == used
    assert ("(--interpolation), the ancestry model was trained with" in caplog.text) == (used != kind)


def test_what_an_earlier_version_made_is_found_again(tmp_path: Path) -> None:
    """It resized with --interpolation's default whatever the ancestry model was trained with."""
    said = settings(tmp_path, "bilinear", interpolation="bicubic")
    made = distill(said)
    assert distill(settings(tmp_path, "bilinear")) == made
    Store(said.store).remove_tree("learngenes/x")
    assert prepare(settings(tmp_path, "bilinear")).config.interpolation == "bicubic"  # of the run that was begun
    assert prepare(settings(tmp_path, "bilinear", name="y")).config.interpolation == "bilinear"

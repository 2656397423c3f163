"""Ancestry models of timm that do not take what others take."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ray_learngene.cli.main import main
from ray_learngene.config import AncestryConfig
from ray_learngene.distillation.run import _settings
from ray_learngene.distillation.train_ancestry import _create, train_ancestry
from ray_learngene.errors import UserError
from tests.ancestry.teachers import save_teacher

QUICK: dict[str, Any] = {
    **{"data": "digits", "name": "x", "workers": 0, "epochs": 1, "warmup_epochs": 0, "batch_size": 512},
    **{"image_size": 32, "check_images": "off"},
}


@pytest.mark.parametrize(
    ("model", "arguments", "told"),
    [
        ("densenet121", {"block_config": [1, 1, 1, 1]}, True),  # without stochastic depth, of no fixed input size
        ("cait_xxs24_224", {"depth": 1, "embed_dim": 48, "num_heads": 4}, False),  # that torch's counter cannot follow
    ],
)
def test_any_model_can_be_an_ancestry(
    model: str, arguments: dict[str, Any], told: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = AncestryConfig(**QUICK, store=str(tmp_path), model=model, model_args=arguments, drop_path=0.2)
    manifest = train_ancestry(config)
    assert manifest.metadata["cost"]["flops"] > 0
    assert ("has no stochastic depth: --drop-path is left out" in capsys.readouterr().err) == told


def test_no_stochastic_depth_is_none_also_for_a_model_with_some_of_its_own(tmp_path: Path) -> None:
    config = AncestryConfig(**QUICK, store=str(tmp_path), model="swin_tiny_patch4_window7_224", drop_path=0.0)
    model = _create(config.model_copy(update={"image_size": None}), classes=2)
    assert not any(getattr(module, "drop_prob", 0) for module in model.modules())


def test_a_model_that_a_folder_cannot_hold_is_refused_before_it_is_trained(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--model coat_lite_tiny: .* and .* share memory"):
        train_ancestry(AncestryConfig(**QUICK, store=str(tmp_path), model="coat_lite_tiny"))
    assert not (tmp_path / "runs").exists()


def test_a_setting_that_came_later_does_not_make_another_run_of_what_was_made_before() -> None:
    def settings(**more: Any) -> dict[str, Any]:
        task: Any = SimpleNamespace(config=AncestryConfig(**QUICK, **more), identity=dict)
        return _settings(task, {})

    assert "split_column" not in settings() and settings(split_column="fold")["split_column"] == "fold"


def test_a_head_that_begins_with_other_classes_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    digits = [str(digit) for digit in range(10)]
    command = ["ancestry", "--data", "digits", "--train-share", "0.1", "--val-share", "0.1", "--epochs", "0"]
    command += ["--pretrained", "--batch-size", "64", "--workers", "0", "--store", str(tmp_path / "store")]
    for name, names in (("same", digits), ("other", digits[::-1])):
        save_teacher(tmp_path / name, model_config={"label_names": names})
        assert main([*command, "--model", f"local-dir:{tmp_path / name}", "--name", name]) == 0
        told = "has other classes than --data digits by name and order (9, ...): its head begins with those"
        assert (told in capsys.readouterr().out) == (name == "other")

"""Ancestry models of timm that do not take what others take."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch

from ray_learngene.cli.main import main
from ray_learngene.config import AncestryConfig
from ray_learngene.distillation.run import _settings
from ray_learngene.distillation.train_ancestry import _classifiers, _create, train_ancestry
from ray_learngene.errors import UserError
from ray_learngene.store.store import Store
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
    config = AncestryConfig(**QUICK, store=str(tmp_path), model=model, model_args=arguments, drop_path=0.2, zero=1)
    manifest = train_ancestry(config)
    assert manifest.metadata["cost"]["flops"] > 0
    out, err = capsys.readouterr()
    assert ("has no stochastic depth: --drop-path is left out" in err) == told
    assert "without effect: --zero (one process trains without DeepSpeed" in out


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
        task: Any = SimpleNamespace(config=AncestryConfig(**QUICK, **more), facts={})
        return _settings(task, {})

    assert "split_column" not in settings() and settings(split_column="fold")["split_column"] == "fold"


def test_a_head_is_mapped_to_the_order_of_the_classes_or_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    digits = [str(digit) for digit in range(10)]
    command = ["ancestry", "--data", "digits", "--train-share", "0.1", "--val-share", "0.1", "--epochs", "0"]
    command += ["--pretrained", "--batch-size", "64", "--workers", "0", "--store", str(tmp_path / "store")]
    told = {
        "same": (digits, ""),
        "mapped": (digits[::-1], "has the classes of --data digits in another order: mapped by name"),
        "other": (
            [*digits[:9], "ten"],
            "has other classes than --data digits by name and order (0, ...): its head begins",
        ),
    }
    images, logits = torch.rand(2, 3, 8, 8), {}
    for name, (names, line) in told.items():
        save_teacher(tmp_path / name, model_config={"label_names": names})
        assert main([*command, "--model", f"local-dir:{tmp_path / name}", "--name", name]) == 0
        said = capsys.readouterr().out
        assert [text in said for _, text in told.values() if text] == [
            text == line for _, text in told.values() if text
        ]
        folder = Store(str(tmp_path / "store")).download("ancestry", name, tmp_path / f"{name}-out")
        logits[name] = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()(images)
    assert torch.equal(logits["other"], logits["same"])
    torch.testing.assert_close(logits["mapped"], logits["same"].flip(-1), rtol=0, atol=1e-6)


@pytest.mark.parametrize("model", ["levit_128s", "deit_tiny_distilled_patch16_224", "convnext_atto", "efficientnet_b0"])
def test_the_layers_of_heads_are_found(model: str) -> None:
    with torch.device("meta"):
        module = timm.create_model(model, num_classes=7)
    names = module.pretrained_cfg["classifier"]
    expected = [module.get_submodule(name) for name in ([names] if isinstance(names, str) else names)]
    assert _classifiers(module, 7) == expected

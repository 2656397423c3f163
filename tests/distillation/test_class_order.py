"""A head that a distillation starts from is brought into the order of the images' classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from ray_learngene.config import DistillConfig
from ray_learngene.distillation.distill import prepare
from ray_learngene.methods.registry import create_method
from ray_learngene.models.build import build
from ray_learngene.models.preprocessing import Preprocessing
from ray_learngene.models.specs import preset
from ray_learngene.models.timm_folder import export_timm
from ray_learngene.store.store import Store

SPEC = preset("nano", width=32, depth=2)
METHOD = "any-size:shallowest=1:stages=2"
REVERSED = tuple(str(digit) for digit in reversed(range(10)))
HALVES = (0.5, 0.5, 0.5)
IMAGES = Preprocessing(image_size=8, mean=HALVES, std=HALVES, crop_pct=1.0, interpolation="bicubic")


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    model = build(SPEC, seed=1)
    export_timm(model, tmp_path / "model", labels=REVERSED, preprocessing=IMAGES)
    method = create_method(METHOD)
    torch.manual_seed(2)
    made = method.extract(method.auxiliary(SPEC))
    made = made.describe(labels=REVERSED, preprocessing=IMAGES.model_dump(mode="json"))
    made.save(tmp_path / "made")
    store = Store(str(tmp_path / "store"))
    store.publish("learngene", "before", tmp_path / "made", {"fingerprint": "x", "cost": {}})
    small = {"data": "digits", "train_share": 0.1, "val_share": 0.1, "batch_size": 32, "workers": 0}
    return {
        **small,
        **{"name": "x", "store": store.uri, "ancestry": f"local-dir:{tmp_path / 'model'}"},
        **{"preset": "nano", "width": 32, "depth": 2, "method": METHOD},
        "heads": {"warm_start": model.head.weight.detach(), "start": made.tensors["head.weight"]},
    }


@pytest.mark.parametrize(("flag", "value"), [("warm_start", "last"), ("start", "before")])
def test_the_head_is_in_the_order_of_the_images(flag: str, value: str, settings: dict[str, Any]) -> None:
    heads = settings.pop("heads")
    task = prepare(DistillConfig(**settings, **{flag: value}))
    assert task.labels == REVERSED[::-1]
    assert torch.equal(task.module.state_dict()["head__weight"], heads[flag].flip(0))

"""OpenVINO computes what an exported file says, by the recipe of docs/export.md: `make test-openvino`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch

import ray_learngene as lg
from ray_learngene.config.image import ImageShape
from ray_learngene.models.timm_folder import export_timm
from tests.delivery.stores import DIGITS, PREPROCESSING

pytestmark = pytest.mark.openvino

MODELS: dict[str, dict[str, Any]] = {
    "vit_tiny_patch16_224": {"embed_dim": 48, "depth": 2, "num_heads": 3, "img_size": 32, "patch_size": 8},
    "swin_tiny_patch4_window7_224": {"embed_dim": 24, "depths": (1, 1), "num_heads": (2, 4), "img_size": 56},
    "convnext_atto": {"depths": (1, 1, 1, 1), "dims": (8, 16, 24, 32)},
}


@pytest.mark.parametrize("architecture", MODELS)
@pytest.mark.parametrize("uint8", [False, True], ids=["float", "uint8"])
def test_the_recipe_computes_the_golden_logits(architecture: str, uint8: bool, tmp_path: Path) -> None:
    openvino = pytest.importorskip("openvino")
    torch.manual_seed(0)
    model = timm.create_model(architecture, num_classes=10, **MODELS[architecture])
    torch.nn.init.normal_(model.get_classifier().weight)  # so that decisions are not close
    image = PREPROCESSING.model_copy(update={"image_size": ImageShape.of(MODELS[architecture].get("img_size", 64))})
    export_timm(model, tmp_path / "model", labels=DIGITS, preprocessing=image, model_args=MODELS[architecture])
    made = lg.export(tmp_path / "model", format=["onnx", "int8"], uint8_input=uint8, out=tmp_path / "out")
    for one in made:
        golden = np.load(one.path / "golden.npz")
        hints = {"INFERENCE_PRECISION_HINT": "f32"}
        compiled = openvino.compile_model(one.path / "model.onnx", "CPU", hints)
        logits = compiled({"images": golden["inputs"]})["logits"]
        near = (
            1e-4 if one.facts["precision"] == "fp32" else 0.05 * np.abs(golden["logits"]).max()
        )  # int8 rounds its own way
        np.testing.assert_allclose(logits, golden["logits"], atol=near)
        alone = compiled({"images": golden["inputs"][:1]})["logits"]  # the batch is dynamic
        np.testing.assert_allclose(alone, golden["logits"][:1], atol=near)

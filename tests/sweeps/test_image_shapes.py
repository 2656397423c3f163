"""Students of images that are not square, and of grey ones: from distillation to plain timm and ONNX."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import timm
import torch
from PIL import Image

from tests.command_line import learngene

CLASSES = {"bright": 110, "dark": 0}  # by the darkest pixel
SWIN = "{patch_size: 4, embed_dim: 16, depths: [1, 1], num_heads: [2, 4], window_size: 2}"
VIT = "{patch_size: 8, embed_dim: 16, depth: 2, num_heads: 2}"


def _write_images(folder: Path) -> None:
    draws = np.random.default_rng(0)
    for split, count in (("train", 16), ("val", 8)):
        for name, darkest in CLASSES.items():
            (folder / split / name).mkdir(parents=True)
            for index in range(count):
                pixels = draws.integers(darkest, darkest + 130, (20, 12, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{index}.png")


@pytest.mark.parametrize(
    ("student", "arguments", "shape"),
    [("swin_tiny_patch4_window7_224", SWIN, (3, 16, 8)), ("deit_tiny_patch16_224", VIT, (1, 16, 24))],
    ids=["RGB", "grey"],
)
def test_from_distillation_to_plain_timm_and_onnx(
    student: str, arguments: str, shape: tuple[int, int, int], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    _write_images(tmp_path / "photos")
    data = f"--data {tmp_path / 'photos'} --batch-size 16 --lr 2e-1 --warmup-epochs 0 --epochs 3"
    size = ("--store", tmp_path / "store", "--workers", 0, "--input-size", *shape)
    assert learngene(f"ancestry {data} --name own --model {student} --model-args '{arguments}'", *size) == 0
    of = f"--ancestry store:ancestries/own --student {student} --student-args '{arguments}'"
    assert learngene(f"distill {data} {of} --name own --method any-size", *size) == 0
    sweep = f"sweep {data} --learngene own --name sizes --depth-factor 1 --arms any-size --in-process"
    assert learngene(sweep, *size[:2]) == 0
    folder = tmp_path / "best"
    assert learngene("pull --sweep sizes", *size[:2], "--out", folder) == 0
    row = json.loads((folder / "metrics.json").read_text())["row"]
    words = "16x8 px" if shape[0] == 3 else "16x24 px grey"
    assert f"{words} images" in (folder / "README.md").read_text()
    capfd.readouterr()
    assert learngene("show learngenes/own", *size[:2]) == 0
    assert f"{words}, patch {4 if shape[0] == 3 else 8}" in capfd.readouterr().out

    model: Any = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    transform: Any = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    paths = sorted((tmp_path / "photos/val").rglob("*.png"))
    mode = "L" if shape[0] == 1 else "RGB"
    images = torch.stack([transform(Image.open(path).convert(mode)) for path in paths])
    assert images.shape[1:] == shape
    logits = model(images).detach()
    right = [path.parent.name == [*CLASSES][choice] for path, choice in zip(paths, logits.argmax(-1), strict=True)]
    assert 100 * np.mean(right) == pytest.approx(row["top1"]) and row["top1"] > 50

    export = f"export {folder} --out {tmp_path / 'onnx'} --data {tmp_path / 'photos'}"
    capfd.readouterr()
    assert learngene(export) == 0
    assert "onnxruntime" not in capfd.readouterr().err  # it warns of values with wrong shapes
    session = onnxruntime.InferenceSession(tmp_path / "onnx/model.onnx")
    np.testing.assert_allclose(session.run(None, {"images": images.numpy()})[0], logits, atol=1e-4)

"""A student of another architecture from distillation to a plain timm folder of equal accuracy."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import timm
import torch

from tests.command_line import learngene

SWIN = "{img_size: 16, patch_size: 4, embed_dim: 16, depths: [2, 2], num_heads: [2, 4], window_size: 2}"
DATA = "--data digits --train-share 0.2 --val-share 0.2 --batch-size 64 --lr 2e-2 --warmup-epochs 0"
NAME = "swin_tiny_patch4_window7_224"


def test_from_a_trained_swin_to_plain_timm(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = tmp_path / "store"
    args = ("--store", store, "--image-size", 16, "--workers", 0, "--epochs", 1)
    assert learngene(f"ancestry {DATA} --name swin --model {NAME} --model-args '{SWIN}'", *args) == 0
    student = f"--ancestry store:ancestries/swin --student {NAME} --student-args '{SWIN}' --method any-size"
    assert learngene(f"distill {DATA} {student} --name any", *args) == 0
    extract = "extract --source store:ancestries/swin --method weight-selection --name chosen"
    assert learngene(extract, "--store", store) == 0
    sweep = f"sweep {DATA} --learngene any --name sizes --depth-factor 1,1.5 --epochs 1 --in-process"
    assert learngene(sweep, "--store", store, "--arms", "any-size", "scratch") == 0
    more = f"sweep {DATA} --learngene any --name smaller --depth-factor 1 --epochs 0 --in-process"
    assert learngene(more, "--store", store, "--arms", "weight-selection@chosen") == 0
    capsys.readouterr()
    assert learngene("pull --sweep sizes", "--store", store, "--out", tmp_path / "best") == 0
    row = json.loads((tmp_path / "best/metrics.json").read_text())["row"]
    config = json.loads((tmp_path / "best/config.json").read_text())
    assert [row["architecture"], config["architecture"]] == [NAME, NAME]
    assert row["stages"] in ("2-2", "3-3")
    card = (tmp_path / "best/README.md").read_text()
    assert f"timm's `{NAME}` of {row['params']:,} parameters:\nwidth 16, depth {row['stages']}, 16 px images" in card
    assert "no class token" not in card
    model = timm.create_model(f"local-dir:{tmp_path / 'best'}", pretrained=True).eval()
    assert model(torch.rand(2, 3, 16, 16)).shape == (2, 10)
    capsys.readouterr()
    assert learngene(f"evaluate {tmp_path / 'best'} --data digits --val-share 0.2") == 0
    assert f"{row['top1']:.2f}" in capsys.readouterr().out

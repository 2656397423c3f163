"""What users of timm and Ray type means the same here."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from tests.command_line import learngene


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("--img-size 16", {"image_size": 16}),
        ("--input-size 1 16 8", {"in_chans": 1, "image_size": [16, 8]}),
        ("--aa rand-m9", {"auto_augment": "rand-m9"}),
        ("--amp-dtype bfloat16", {"precision": "bf16"}),
        ("--model-ema-decay 0.9", {"ema": 0.9}),
        ("--grad-accum-steps 2", {"accumulation": 2}),
        ("--aug-repeats 2", {"repeats": 2}),
        ("--train-interpolation bilinear", {"interpolation": "bilinear"}),
        ("-b 64 --num-workers 2 --learning-rate 0.1", {"batch_size": 64, "loader_workers": 2, "lr": 0.1}),
    ],
)
def test_a_flag_of_timm(typed: str, meant: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    command = "distill --data digits --name x --preset nano --alpha 0 --print-config"
    assert learngene(f"{command} {typed}") == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert {name: printed[name] for name in meant} == meant

"""`plan` without a learngene: the sizes of a preset or of any architecture of timm."""

from __future__ import annotations

import pytest
import timm
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import ray_learngene as lg
from ray_learngene.models.build import build
from tests.command_line import learngene

_SMALL_DEIT = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "num_heads": 2}


@pytest.mark.parametrize(
    ("settings", "layers"),
    [
        ({"student": "deit_tiny_patch16_224", "student_args": _SMALL_DEIT, "depths": "2,4"}, ["4", "2"]),
        ({"student": "deit_tiny_patch16_224", "image_size": 32, "in_chans": 1, "depths": 1, "widths": 64}, ["1"]),
        ({"student": "vit_small_patch16_dinov3", "depths": range(1, 3), "image_size": 32}, ["2", "1"]),
        (
            {"student": "convnext_tiny", "depth_factor": "0.25,0.5", "width_factor": 0.5, "image_size": 32},
            ["2-2-4-2", "1-1-2-1"],
        ),
        ({"student": "convnext_tiny", "depths": "1-1-3-1", "image_size": "32x64"}, ["1-1-3-1"]),
        ({"preset": "nano", "depths": "1,3"}, ["3", "1"]),
    ],
    ids=["ViT", "grey", "Eva", "factors", "stages", "preset"],
)
def test_costs_of_sizes_are_those_of_the_real_models(settings: dict[str, object], layers: list[str]) -> None:
    planned = lg.plan(**settings)
    assert [one.spec.layers for one in planned.selection.candidates] == layers
    assert (planned.descendants, planned.latencies, planned.cost) == (0, {}, None)
    for one in planned.selection.candidates:
        model = build(one.spec).eval().requires_grad_(False)
        assert one.costs["params"] == sum(parameter.numel() for parameter in model.parameters())
        with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
            model(torch.zeros(1, *one.spec.image))
        assert 2 * one.costs["macs"] == counter.get_total_flops()
        assert one.costs["memory"] > 4 * one.costs["params"]


def test_the_entry_point_itself_is_the_largest_of_its_sizes() -> None:
    planned = lg.plan(student="convnext_atto", depth_factor=1)
    own = sum(parameter.numel() for parameter in timm.create_model("convnext_atto").parameters())
    assert [one.costs["params"] for one in planned.selection.candidates] == [own]


def test_budgets_choose_among_the_sizes(capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        learngene("plan --student convnext_atto --image-size 32 --data digits --depths 4,6 --budgets params<=2M") == 0
    )
    title, *lines = capsys.readouterr().out.splitlines()
    assert title.rstrip() == "sizes of convnext_atto, 32 px, 10 classes"
    [chosen] = [line for line in lines if "chosen" in line]
    assert "1-1-2-2" in chosen or "1-1-3-1" in chosen
    assert "latency" not in "".join(lines) and "descendant" not in "".join(lines)
    searched = "plan --student convnext_atto --image-size 32 --stage-depths 1-2/1-2/1-6/1-2 --budgets params<=2M"
    assert learngene(searched) == 0 and "chosen" in capsys.readouterr().out
    assert learngene("plan --student convnext_atto --depths 4 --budgets params<=1k") == 3
    assert "nothing meets it" in capsys.readouterr().err

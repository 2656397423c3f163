"""Checkpointed gradients are those without checkpointing, bit for bit, for every family and method."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from benchmarks.measure import peak_of
from benchmarks.step_memory import needed, weights
from ray_learngene.cli.main import main
from ray_learngene.config.image import ImageShape
from ray_learngene.methods.elastic import draw_step
from ray_learngene.methods.registry import create_method
from ray_learngene.models.blocks import set_drop_path
from ray_learngene.models.build import build
from ray_learngene.models.checkpointing import checkpoint_gradients
from ray_learngene.training.features import FeatureLoss, FeatureObjective
from tests.methods.test_families import ARCHITECTURES, spec_of_method
from tests.models.sizes import SMALL, small
from tests.sweeps.test_siblings import MEMBERS, assert_equal, family
from tests.training.test_features import student, teacher

WITHOUT_TIMMS = ("pit_ti_224",)  # timm refuses to checkpoint it


def images_for(size: int | ImageShape) -> Tensor:
    shape = (3, size, size) if isinstance(size, int) else size
    return torch.randn(8, *shape, generator=torch.Generator().manual_seed(0))


def step(model: nn.Module, images: Tensor, autocast: bool = False) -> tuple[list[Tensor], list[Tensor]]:
    """Return the outputs of a training step, and its gradients and statistics."""
    model.train()
    draw_step(model, seed=0, step=1, total_steps=4)
    torch.manual_seed(3)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        outputs = model(images)
    each = list(outputs if isinstance(outputs, tuple) else (outputs,))
    sum(logits.float().logsumexp(-1).square().mean() for logits in each).backward()  # type: ignore[union-attr]
    return each, [*(p.grad for p in model.parameters() if p.grad is not None), *model.buffers()]


def assert_same(model: nn.Module, images: Tensor, *, bits: bool = True, **options: Any) -> None:
    checkpointed = copy.deepcopy(model)
    checkpoint_gradients(checkpointed)
    for expected, found in zip(step(model, images, **options), step(checkpointed, images, **options), strict=True):
        assert len(expected) == len(found) > 0
        for one, other in zip(expected, found, strict=True):
            torch.testing.assert_close(other, one, rtol=0 if bits else 1e-4, atol=0 if bits else 1e-5)


@pytest.mark.parametrize("architecture", SMALL)
def test_gradients_of_a_model_of_any_family(architecture: str) -> None:
    model = build(small(architecture), seed=0)
    set_drop_path(model, 0.3)
    assert_same(model, images_for(32))


@pytest.mark.parametrize("architecture", [*WITHOUT_TIMMS, "levit_128s", "resnet10t"])
def test_gradients_and_running_statistics_of_other_classes(architecture: str) -> None:
    """The backward pass repeats the forward pass, and BatchNorm must not count its images twice."""
    torch.manual_seed(0)
    model = timm.create_model(architecture, num_classes=5)
    assert_same(model, images_for(64 if architecture == "resnet10t" else 224)[:2], bits=False)


@pytest.mark.parametrize("text", ["sws", "any-size", "any-size:widths=8", "supernet", "wave", "tleg"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_gradients_of_generated_models(architecture: str, text: str) -> None:
    if "mixed" in architecture and text == "tleg":
        return
    torch.manual_seed(0)
    spec = spec_of_method(architecture)
    text = text.replace("=8", f"={spec.width // 2}")
    assert_same(create_method(text).auxiliary(spec, drop_path=0.3), images_for(spec.image))


@pytest.mark.parametrize("text", ["sws", "any-size", "pretrained"])
def test_gradients_under_autocast(text: str) -> None:
    torch.manual_seed(0)
    assert_same(
        create_method(text).auxiliary(small("deit_tiny_patch16_224"), drop_path=0.3), images_for(32), autocast=True
    )


@pytest.mark.parametrize("method", ["sws:stages=2-2", "any-size", "pretrained"])
def test_gradients_of_a_student_of_features(method: str) -> None:
    ancestry = teacher()
    model = student(method, ancestry, layers=2)
    checkpointed = copy.deepcopy(model)
    checkpoint_gradients(checkpointed)
    found = []
    for each in (model, checkpointed):
        draw_step(each.train(), seed=0, step=1, total_steps=4)
        torch.manual_seed(3)
        objective = FeatureObjective(ancestry, each.reader, FeatureLoss())
        objective(each, images_for(8), torch.zeros(8))["loss"].backward()  # type: ignore[arg-type]
        found.append([parameter.grad for parameter in each.parameters()])
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "architecture", ["vit_small_patch16_dinov3", "swin_tiny_patch4_window7_224", "convnextv2_atto"]
)
@pytest.mark.parametrize("text", ["any-size:stages=1", "pretrained"])
def test_a_step_needs_less_memory(architecture: str, text: str) -> None:
    spec = small(architecture)
    spec = spec.replace(depths=tuple(8 for _ in spec.depths)) if spec.depths else spec.replace(depth=12)
    torch.manual_seed(0)
    model = create_method(text).auxiliary(spec)
    images = images_for(spec.image).repeat(4, 1, 1, 1)
    before = peak_of(lambda: step(model, images))
    checkpoint_gradients(model)
    assert peak_of(lambda: step(model, images)) < 0.6 * before


@pytest.mark.parametrize(
    "architecture", ["vit_small_patch16_dinov3", "swin_tiny_patch4_window7_224", "convnextv2_atto"]
)
@pytest.mark.parametrize("widths", ["", ":widths={}"])
def test_any_size_needs_no_more_than_the_largest_size_alone_and_the_shared_weights(
    architecture: str, widths: str
) -> None:
    spec = spec_of_method(architecture)
    elastic = create_method(f"any-size{widths.format(spec.width // 2)}").auxiliary(spec)
    images = images_for(spec.image)
    assert needed(elastic, images) <= needed(build(spec), images) + weights(elastic)


def test_siblings_that_checkpoint_are_those_that_do_not_trained_alone(tmp_path: Path) -> None:
    """A sweep that ran out of memory goes on with --grad-checkpointing: the descendants keep their names."""
    made = family(tmp_path / "together", MEMBERS[:3], grad_checkpointing=True)
    made.together()
    plain = family(tmp_path / "alone", MEMBERS[:3])
    plain.alone()
    assert made.names == plain.names
    assert_equal(made, plain)


def test_a_model_without_blocks_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = ["--store", str(tmp_path / "store"), "--data", "digits", "--name", "new", "--workers", "0"]
    assert main(["ancestry", "--model", "vgg11", "--grad-checkpointing", *store]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1 and "--grad-checkpointing: timm has none for a VGG: leave it out" in said[0]

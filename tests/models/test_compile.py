"""Compiled layers compute what plain ones do, and are compiled once for all layers, depths and models."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch._dynamo.utils import counters

from ray_learngene.ancestry.model import Ancestry
from ray_learngene.cli.main import main
from ray_learngene.errors import RunError
from ray_learngene.methods.elastic import draw_step
from ray_learngene.methods.registry import create_method
from ray_learngene.models.blocks import set_drop_path
from ray_learngene.models.build import build
from ray_learngene.models.compile import CompiledBlock, compile_layers
from ray_learngene.models.specs import PRESETS
from ray_learngene.training.flops import forward_flops, training_flops
from tests.delivery.stores import publish_learngene
from tests.models.sizes import small
from tests.sweeps.test_siblings import MEMBERS, assert_equal, family, history

SPEC = PRESETS["nano"].replace(depth=6)
COMPILING = pytest.mark.compiling
BOUND = 1e-5  # of a gradient's largest entry, and of logits: rounding


@pytest.fixture(scope="module", autouse=True)
def clean() -> None:
    torch.compiler.reset()


def deep(depth: int) -> nn.Module:
    model = build(SPEC.replace(depth=depth), seed=0)
    set_drop_path(model, 0.3)
    return model


def step(model: nn.Module, training: bool = True) -> tuple[Tensor, list[Tensor]]:
    """Logits of a step, or of a scoring, and the gradients."""
    model.train(training)
    draw_step(model, seed=0, step=1, total_steps=4)
    images = torch.randn(8, *SPEC.image, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(3)
    if not training:
        with torch.no_grad():
            return model(images), []
    logits = model(images)
    logits = torch.cat(logits) if isinstance(logits, tuple) else logits
    return logits, list(torch.autograd.grad(logits.logsumexp(-1).square().mean(), list(model.parameters())))


def graphs() -> int:
    return counters["stats"]["unique_graphs"]


@COMPILING
# any-size with corrections takes a pass for each depth, compiled or not: one pass samples in another order
@pytest.mark.parametrize("what", ["sws", "plain", "wave", "any-size:corrections=0.1"])
def test_a_compiled_step_is_the_plain_one_with_the_same_layers_dropped(what: str) -> None:
    torch.compiler.reset()
    torch.manual_seed(0)
    model = deep(6) if what == "plain" else create_method(what).auxiliary(SPEC, drop_path=0.3)
    compiled = copy.deepcopy(model)
    compile_layers(compiled)
    assert compiled.state_dict().keys() == model.state_dict().keys()
    for training in (True, False):
        before = graphs()
        (expected, gradients), (logits, found) = step(model, training), step(compiled, training)
        assert graphs() > before
        assert (logits - expected).abs().max() <= BOUND * expected.abs().max()
        for one, other in zip(found, gradients, strict=True):
            assert (one - other).abs().max() <= BOUND * other.abs().max().clamp(min=1e-3)


@COMPILING
@pytest.mark.parametrize("checkpointing", [False, True])
def test_and_so_it_is_in_bf16_and_with_checkpointed_gradients(checkpointing: bool) -> None:
    model = create_method("sws").auxiliary(SPEC, drop_path=0.3)
    assert isinstance(model, VisionTransformer)
    model.set_grad_checkpointing(checkpointing)
    compiled = copy.deepcopy(model)
    compile_layers(compiled)
    with torch.autocast("cpu", torch.bfloat16):
        (expected, gradients), (logits, found) = step(model), step(compiled)
    assert (logits - expected).abs().max() <= 2**-7 * expected.abs().max()
    for one, other in zip(found, gradients, strict=True):
        assert (one - other).norm() <= 2**-4 * other.norm() + 1e-5


@COMPILING
def test_all_layers_of_all_depths_and_methods_are_one_graph_for_each_mode() -> None:
    """Three: with and without a drop-path rate in training, and in evaluation."""
    torch.compiler.reset()
    sws, *waves = (
        create_method(name).auxiliary(SPEC.replace(depth=depth), drop_path=0.2)
        for name, depth in (("sws", 6), ("wave", 6), ("wave", 3))
    )
    # what parameters are generated to are no parameters, and so another kind of layer
    for models, new in (([sws], 3), ([deep(4), deep(9)], 0), (waves, 3)):
        before = graphs()
        for model in models:
            compile_layers(model)
            step(model)
            step(model, training=False)
        assert graphs() - before == new


@COMPILING
def test_a_model_without_timms_blocks_is_compiled_as_a_whole() -> None:
    torch.manual_seed(0)
    plain = Ancestry(timm.create_model("resnet10t", num_classes=4))
    images = torch.randn(2, 3, 32, 32)
    expected = plain(images)
    before = graphs()
    with torch.no_grad():
        found = copy.deepcopy(plain).ready(torch.device("cpu"), compiled=True)(images)
    assert graphs() > before
    assert (found - expected).abs().max() <= BOUND * expected.abs().max()


@COMPILING
@pytest.mark.parametrize("kept", [False, True])
def test_the_ancestry_of_compiled_siblings_is_compiled(kept: bool, tmp_path: Path) -> None:
    ancestry = Ancestry(build(SPEC.replace(depth=2), seed=8))
    made = family(tmp_path / "store", MEMBERS[:2], compile=True, soft_labels=kept)
    made.ancestry = ancestry
    made.together()
    assert {type(block) for block in ancestry.model.blocks} == {CompiledBlock}


def test_no_compiler_is_one_line_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    publish_learngene(tmp_path / "full")
    for store, *command in (
        ("store", "ancestry", "--model", "vit_tiny_patch16_224", "--workers", "0"),
        ("full/store", "sweep", "--learngene", "gene", "--in-process"),
    ):
        where = ["--store", str(tmp_path / store), "--data", "digits", "--name", "new", "--compile"]
        assert main([*command, *where]) == 5
        said = capsys.readouterr().err.strip().splitlines()
        assert len(said) == 1 and "--compile needs a C++ compiler (no-such-compiler)" in said[0]
    assert not (tmp_path / "store").exists()
    with pytest.raises(RunError, match=r"needs a C\+\+ compiler"):
        compile_layers(deep(2))


def test_flops_are_counted_of_compiled_models() -> None:
    for model in (deep(3), create_method("sws").auxiliary(SPEC), create_method("any-size").auxiliary(SPEC)):
        expected = forward_flops(model, SPEC.image), training_flops(model, SPEC.image, batch=4, steps=3)
        compile_layers(model)
        assert (
            (forward_flops(model, SPEC.image), training_flops(model, SPEC.image, batch=4, steps=3)) == expected > (0,)
        )


@COMPILING
def test_compiled_siblings_are_those_compiled_alone(tmp_path: Path) -> None:
    members = [("sws", 2, 1e-3), ("scratch", 3, 1e-3)]
    made, alone = (family(tmp_path / name, members, compile=True) for name in ("together", "alone"))
    made.together()
    alone.alone()
    assert_equal(made, alone)
    plain = family(tmp_path / "plain", members)
    plain.together()
    for name in made.names:  # the same descendant, as compiling does not decide what it becomes
        losses = [[entry["val_loss"] for entry in history(each, name)] for each in (made, plain)]
        assert np.allclose(*losses, rtol=1e-3)


@COMPILING
@pytest.mark.parametrize("text", ["weight-selection", "any-size"])
@pytest.mark.parametrize(
    "architecture",
    ["vit_small_patch16_dinov3", "swin_tiny_patch4_window7_224", "convnextv2_atto", "beit_base_patch16_224"],
)
def test_blocks_of_any_family_are_compiled_and_compute_the_same(architecture: str, text: str) -> None:
    spec = small(architecture).replace(depth=6)
    torch.manual_seed(0)
    plain = create_method(text).auxiliary(spec, drop_path=0.3)
    compiled = copy.deepcopy(plain)
    if text == "any-size":
        compiled.compile()
    else:
        compile_layers(compiled)
    images = torch.randn(8, *spec.image, generator=torch.Generator().manual_seed(0))
    before, found = graphs(), []
    for model in (plain, compiled):
        draw_step(model.train(), seed=0, step=1, total_steps=4)
        torch.manual_seed(3)
        logits = model(images)
        found.append((logits, torch.autograd.grad(logits.logsumexp(-1).square().mean(), list(model.parameters()))))
    assert graphs() > before
    (logits, gradients), (compiled_logits, compiled_gradients) = found
    torch.testing.assert_close(compiled_logits, logits, rtol=BOUND, atol=BOUND)
    for one, other in zip(compiled_gradients, gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=BOUND * max(1.0, float(other.abs().max())))

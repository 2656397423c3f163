"""What holds for any family: a new one needs an entry in `sizes.py` and no test."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.measure import peak_of
from ray_learngene.errors import UserError
from ray_learngene.methods.registry import create_method
from ray_learngene.models import costs
from ray_learngene.models.build import build, shapes_of, spec_of
from ray_learngene.models.costs import parameters
from ray_learngene.models.layout import axes, chains, scales_input
from ray_learngene.models.specs import Spec, preset, spec_for
from tests.methods.trained import noisy
from tests.models.sizes import SMALL, small


def tiled(tensor: Tensor, dim: int, groups: int) -> Tensor:
    """Repeat each group of an axis."""
    return torch.cat([part for part in tensor.chunk(groups, dim) for _ in range(2)], dim)


def doubled(model: nn.Module, spec: Spec, twice: Spec) -> dict[str, Tensor]:
    """Repeat every axis within its groups, and halve the weights of repeated inputs."""
    labels, want, modules, state = axes(spec), shapes_of(twice), dict(model.named_modules()), dict[str, Tensor]()
    for name, tensor in model.state_dict().items():
        for dim, axis in enumerate(labels[name]):
            if tensor.shape[dim] != want[name][dim]:
                tensor = tiled(tensor, dim, axis.groups)
                if name.endswith(".weight") and scales_input(modules[name.removesuffix(".weight")], dim):
                    tensor = tensor / 2
        state[name] = tensor
    return state


@pytest.mark.parametrize("architecture", SMALL)
def test_a_model_of_twice_the_width_with_repeated_axes_computes_the_same(architecture: str) -> None:
    spec = small(architecture)
    twice = spec.replace(width=2 * spec.width, heads=2 * spec.heads)
    model, larger = noisy(build(spec, seed=0), 0.05, 1), build(twice).eval()
    larger.load_state_dict(doubled(model, spec, twice))
    images = torch.randn(2, *spec.image)
    with torch.no_grad():
        torch.testing.assert_close(larger(images), model(images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("architecture", SMALL)
def test_a_spec_is_read_from_its_model_and_from_its_stored_form(architecture: str) -> None:
    spec = small(architecture)
    assert (
        spec_of(build(spec)).replace(image=32)
        == spec
        == Spec(**spec.model_dump())
        == Spec.model_validate_json(spec.model_dump_json())
    )
    deeper = spec.replace(depth=spec.depth + 2)
    assert deeper.depth == spec.depth + 2
    assert sum(map(len, chains(deeper).values())) > sum(map(len, chains(spec).values()))
    assert deeper.replace(depths=spec.depths) == spec if spec.depths else deeper.replace(depth=spec.depth) == spec


@pytest.mark.parametrize(
    "architecture",
    ["vit_giant_patch14_reg4_dinov2", "eva02_base_patch14_224", "swin_tiny_patch4_window7_224", "convnext_atto"],
)
def test_parameters_and_macs_are_those_of_the_real_model(architecture: str) -> None:
    spec = small(architecture)
    model = build(spec).eval().requires_grad_(False)
    assert costs.parameters(spec) == sum(parameter.numel() for parameter in model.parameters())
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        model(torch.zeros(1, *spec.image))
    assert 2 * costs.macs(spec) == counter.get_total_flops()
    assert 0 < 4 * costs.parameters(spec) < costs.inference_memory(spec) < costs.training_memory(spec, 2)


@pytest.mark.parametrize(
    ("architecture", "arguments"),
    [
        ("deit_tiny_patch16_224", {"depth": 2}),
        ("vit_small_patch16_dinov3", {"depth": 2}),
        ("swin_tiny_patch4_window7_224", {"depths": [1, 1, 2, 1]}),
        ("convnext_atto", {}),
    ],
)
def test_estimated_memory_is_within_15_percent_of_a_measured_peak(architecture: str, arguments: dict[str, Any]) -> None:
    spec = spec_for(architecture, classes=10, **arguments)
    model, images = build(spec).eval(), torch.zeros(1, *spec.image)
    with torch.inference_mode():
        model(images)
        peak = peak_of(lambda: model(images))
    measured = peak + 4 * (costs.parameters(spec) + images.numel())
    assert abs(costs.inference_memory(spec) / measured - 1) < 0.15


@pytest.mark.parametrize(
    ("architecture", "arguments", "says"),
    [
        ("vit_small_patch16_dinov3", {"embed_dim": 32, "num_heads": 16}, "a head size that is a multiple of 4, not 2"),
        ("nextvit_small", {"depths": [1, 1, 1, 1]}, r"timm refuses this size: .*; its own is depths=\(3, 4, 10, 3\)"),
        ("efficientvit_m0", {"num_heads": [8, 8, 8]}, r"timm refuses this size: .*; its own is num_heads=\[4, 4, 4\]"),
    ],
)
def test_a_size_that_a_family_cannot_have_is_one_line(architecture: str, arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=f"^{architecture}.*{says}") as refused:
        spec_for(architecture, **arguments)
    assert "\n" not in str(refused.value)


def test_a_model_that_timm_builds_but_that_cannot_run_is_one_line() -> None:
    spec = spec_for("swinv2_tiny_window8_256", **{**SMALL["swinv2_tiny_window8_256"], "num_heads": [3, 2]})
    with pytest.raises(UserError, match="^swinv2_tiny_window8_256: width 16, .* does not run: .*; choose another size"):
        costs.macs(spec)


def shaped(architecture: str) -> Spec:
    """A small spec for grey images that are not square."""
    return small(architecture).replace(image="64x32", channels=1)


@pytest.mark.parametrize("architecture", SMALL)
def test_images_that_are_grey_and_not_square(architecture: str) -> None:
    spec = shaped(architecture)
    assert spec.image == (1, 64, 32) and spec.model_dump(mode="json")["image"] == "1x64x32"
    assert Spec(**spec.model_dump(mode="json")) == spec
    model = build(spec).eval()
    assert model(torch.randn(2, *spec.image)).shape == (2, 5)
    assert parameters(spec) == sum(parameter.numel() for parameter in model.parameters())
    assert spec_of(model).replace(image=spec.image) == spec  # without a size of its own it has that of its weights


@pytest.mark.parametrize("architecture", SMALL)
def test_a_trained_model_is_extracted_and_expanded_at_any_shape(architecture: str) -> None:
    method, spec = create_method("pretrained"), shaped(architecture)
    model = build(spec, seed=1).eval()
    model.pretrained_cfg = {**model.pretrained_cfg, "input_size": tuple(spec.image)}
    learngene = method.extract(model)
    images = torch.randn(2, *spec.image)
    assert torch.equal(method.expand(learngene, spec).eval()(images), model(images))
    turned = spec.replace(image="32x64")
    other = method.expand(learngene, turned).eval()
    assert other(torch.randn(2, *turned.image)).shape == (2, 5)
    if "pos_embed" in model.state_dict() and model.pos_embed.ndim == 3:  # as many positions, in another order
        assert not torch.equal(other.pos_embed, model.pos_embed)


@pytest.mark.parametrize(
    ("image", "says"), [("16x9", "choose 16x8 or 16x10"), (9, "choose 8 or 10"), ("1x2", "choose 2")]
)
def test_sizes_that_do_not_fit_the_patches_name_those_that_do(image: object, says: str) -> None:
    with pytest.raises(ValueError, match=f"image size {image} is not divisible by patch size 2: {says}"):
        preset("nano").replace(image=image)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"global_pool": ""}, "without pooling it gives a vector for each patch"),
        ({"mlp_ratio": 1_000_000}, "mlp_ratio"),
    ],
)
def test_sizes_that_only_timm_can_have_are_one_line(arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=f"^deit_tiny_patch16_224: .*{says}") as error:
        spec_for("deit_tiny_patch16_224", **arguments)
    assert "\n" not in str(error.value)


def test_a_preset_is_no_deeper_than_can_be_built() -> None:
    with pytest.raises(UserError, match="less than or equal to 10000"):
        preset("nano", depth=1_000_000)


def test_an_entry_point_is_itself() -> None:
    spec = spec_for("vit_small_patch16_dinov3")
    assert (spec.width, spec.depth, spec.heads, spec.classes, spec.arguments) == (384, 12, 6, 0, {})
    assert spec.replace(depth=4).arguments == {"depth": 4}
    assert spec.replace(width=192).arguments == {"embed_dim": 192, "num_heads": 3}
    assert spec_of(timm.create_model("vit_small_patch16_dinov3")) == spec


def test_a_spec_and_its_shapes_take_one_model(monkeypatch: pytest.MonkeyPatch) -> None:
    built, create_model = list[str](), timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda *args, **kwargs: built.append("") or create_model(*args, **kwargs))
    shapes_of(spec_for("swin_small_patch4_window7_224", classes=7))
    assert len(built) == 1


def test_heads_of_every_block_follow_the_depth_from_both_ends() -> None:
    spec = small("vit_base_patch16_sapiens2")
    assert spec.replace(depth=7).arguments["num_kv_heads"] == [6, 2, 2, 2, 2, 2, 6]
    assert spec.replace(depth=2).arguments["num_kv_heads"] == [6, 6]
    assert spec.replace(depth=3, heads=12, width=96).arguments["num_kv_heads"] == [12, 4, 12]


def test_stages_grow_in_proportion() -> None:
    spec = spec_for("convnext_tiny")
    assert spec.depths == (3, 3, 9, 3)
    assert spec.replace(depth=9).depths == (2, 2, 4, 1)
    assert spec.replace(width=48).arguments == {"dims": [48, 96, 192, 384]}
    swin = spec_for("swin_tiny_patch4_window7_224")
    assert swin.replace(width=64).arguments == {"embed_dim": 64, "num_heads": [2, 4, 8, 16]}


@pytest.mark.parametrize(
    ("architecture", "changes", "message"),
    [
        ("vit_smal_patch16_dinov3", {}, "did you mean vit_small_patch16_dinov3"),
        ("vit_small_patch16_dinov3", {"width": 100}, "not a multiple of the head size"),
        ("convnext_tiny", {"depth": 3}, "4 stages"),
        ("convnext_tiny", {"depths": (3, 3, 9)}, "4 stages, not 3"),
        ("efficientnet_b0", {}, "takes no depth"),
        ("resnet50", {"width": 32}, "timm takes no width for it; its own is 2048"),
    ],
)
def test_a_size_that_cannot_be_is_refused_in_one_line(architecture: str, changes: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=message) as refusal:
        spec_for(architecture).replace(**changes)
    assert "\n" not in str(refusal.value)

"""Sub-models of several depths in one forward pass: the sums of separate passes, and when there is none."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.layers import calculate_drop_path_rates
from torch.utils.flop_counter import FlopCounterMode

from ray_learngene.methods.elastic import ElasticVisionTransformer, at_width
from ray_learngene.methods.one_pass import OnePass, SubModel, fits_one_pass, layers_among
from ray_learngene.methods.registry import create_method
from ray_learngene.models.specs import Spec
from tests.methods.trained import noisy
from tests.models.sizes import small

SPEC = Spec(width=16, depth=12, heads=2, image=8, patch=4, classes=5)
TEXTS = ("any-size:shallowest=2", "any-size:shallowest=2:stages=2:untied=true", "any-size:stages=1:step=1")


def auxiliary_of(text: str, spec: Spec = SPEC, drop_path: float = 0.0) -> ElasticVisionTransformer:
    torch.manual_seed(0)
    auxiliary = noisy(create_method(text).auxiliary(spec, drop_path=drop_path))
    assert isinstance(auxiliary, ElasticVisionTransformer)
    return auxiliary.double().train()


def images_of(count: int, spec: Spec = SPEC) -> torch.Tensor:
    return torch.randn(count, *spec.image, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def separately(auxiliary: ElasticVisionTransformer, images: torch.Tensor) -> torch.Tensor:
    """Logits of a pass for each sub-model."""
    count = len(auxiliary.drawn)
    logits = images.new_zeros(len(images), auxiliary.spec.classes)
    for first, spec in enumerate(auxiliary.drawn):
        logits[first::count] = auxiliary.forward_as(spec, images[first::count])
    return logits


@given(
    text=st.sampled_from(TEXTS),
    depths=st.lists(st.integers(2, 12), min_size=2, max_size=5),
    count=st.integers(1, 9),  # fewer images than models, too
)
@settings(max_examples=15)
def test_logits_and_gradients_are_those_of_separate_passes(text: str, depths: list[int], count: int) -> None:
    auxiliary, images = auxiliary_of(text), images_of(count)
    auxiliary.drawn = tuple(SPEC.replace(depth=depth) for depth in depths)
    assert auxiliary._together() is not None
    weights = torch.arange(count * SPEC.classes, dtype=torch.float64).reshape(count, SPEC.classes).sin()
    found = []
    for logits in (auxiliary(images), separately(auxiliary, images)):
        auxiliary.zero_grad()
        (weights * logits).sum().backward()
        found.append(
            [logits.detach(), *(torch.zeros_like(p) if p.grad is None else p.grad for p in auxiliary.parameters())]
        )
    torch.testing.assert_close(*found)


def test_a_layer_computes_only_the_images_of_models_that_have_it() -> None:
    auxiliary, images = auxiliary_of(TEXTS[0]), images_of(8)
    auxiliary.drawn = tuple(SPEC.replace(depth=depth) for depth in (2, 12, 3, 7))
    flops = []
    for run in (auxiliary.forward, lambda images: separately(auxiliary, images)):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            run(images)
        flops.append(counter.get_total_flops())
    assert flops[0] == flops[1]


PLAIN = ("deit_tiny_distilled_patch16_224", "deit3_small_patch16_224", "vit_small_patch14_reg4_dinov2",
         "vit_base_patch16_siglip_224", "vit_base_patch16_clip_quickgelu_224")  # fmt: skip


@pytest.mark.parametrize("architecture", PLAIN)
def test_timm_models_of_plain_blocks_run_in_one_pass(architecture: str) -> None:
    spec = small(architecture).replace(depth=6)
    auxiliary, images = auxiliary_of("any-size:shallowest=2", spec), images_of(8, spec)
    auxiliary.drawn = tuple(at_width(spec, spec.width, depth) for depth in (3, 2, 6, 4))
    assert auxiliary._together() is not None
    torch.testing.assert_close(auxiliary(images), separately(auxiliary, images))


OTHERS = {
    "two widths": ("any-size:widths=8", SPEC),
    "corrections, which depend on the depth": ("any-size:corrections=0.1", SPEC),
    "depths 2 and 3 take other blocks": ("any-size:stages=12:untied=true", SPEC),
    "blocks of another kind": ("any-size", small("vit_small_patch16_dinov3").replace(depth=12)),
}


@pytest.mark.parametrize("why", OTHERS)
def test_other_models_take_a_pass_each(why: str) -> None:
    text, spec = OTHERS[why]
    auxiliary, images = auxiliary_of(text, spec), images_of(8, spec)
    auxiliary.drawn = tuple(at_width(spec, spec.width, depth) for depth in (3, 2, 12, 7))
    if "widths" in text:
        auxiliary.drawn = (*auxiliary.drawn[:3], at_width(spec, 8, 7))
    assert auxiliary._together() is None
    assert torch.equal(auxiliary(images), separately(auxiliary, images))


def test_compiled_blocks_take_a_pass_for_each_model() -> None:
    auxiliary = auxiliary_of("any-size")
    auxiliary.drawn = (SPEC, SPEC.replace(depth=3))
    assert auxiliary._together() is not None
    auxiliary.compile()
    assert auxiliary._together() is None


def test_stochastic_depth_rises_over_the_layers_of_each_model() -> None:
    together = OnePass(SPEC, [SubModel((0, 5), 1.0), SubModel(tuple(range(12)), 1.0)], drop_path=0.4)
    kept = together._kept()  # the deepest model first
    torch.testing.assert_close(1 - kept[:, 0], torch.tensor(calculate_drop_path_rates(0.4, 12)))
    torch.testing.assert_close(1 - kept[[0, 5], 1], torch.tensor([0.0, 0.4]))


def test_stochastic_depth_is_sampled_for_each_image_and_seed() -> None:
    auxiliary = auxiliary_of("any-size", drop_path=0.5)
    auxiliary.drawn = tuple(SPEC.replace(depth=depth) for depth in (3, 12))
    images = images_of(1).expand(64, *SPEC.image)

    def logits(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        found: torch.Tensor = auxiliary(images)
        return found.detach()

    assert torch.equal(logits(0), logits(0)) and not torch.equal(logits(0), logits(1))
    assert len(logits(0)[::2].unique(dim=0)) > 1
    auxiliary.eval()
    assert len(auxiliary(images).unique(dim=0)) == 1


def test_the_layers_of_a_shallower_model_are_found_among_those_of_the_deepest() -> None:
    assert layers_among((0, 2), (0, 0, 1, 2, 2)) == (0, 3)
    assert layers_among((0, 0, 1), (0, 0, 0, 1)) == (0, 1, 3)
    assert layers_among((1, 0), (0, 1)) is None
    models = [SubModel((0, 2), 1.0), SubModel((0, 1, 2, 3), 1.0)]
    assert fits_one_pass(SPEC, models)
    assert not fits_one_pass(SPEC, [*models, SubModel((1, 3), 1.0)])

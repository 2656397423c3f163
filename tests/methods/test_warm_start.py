"""A warm start: shared blocks are the trained model's, chosen or averaged, at its width or a smaller one."""

from __future__ import annotations

from typing import get_args

import pytest
import torch

from ray_learngene.errors import UserError
from ray_learngene.methods.generated import GeneratedVisionTransformer
from ray_learngene.methods.registry import create_method
from ray_learngene.methods.warm_start import Rule, start_from_model
from ray_learngene.models.build import build
from ray_learngene.models.specs import preset
from tests.methods.test_families import ARCHITECTURES, images_of, noisy, spec_of_method
from tests.models.sizes import small


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_as_many_blocks_as_layers_are_the_trained_model(architecture: str) -> None:
    spec = spec_of_method(architecture)
    model = noisy(build(spec, seed=0))
    auxiliary = create_method("supernet").auxiliary(spec).eval()
    start_from_model(auxiliary, model, "average")
    with torch.no_grad():
        assert torch.equal(auxiliary(images_of(spec)), model(images_of(spec)))


@pytest.mark.parametrize("rule", get_args(Rule))
def test_a_shared_block_is_one_of_its_run_or_their_average(rule: Rule) -> None:
    spec = preset("nano", width=32, depth=6, classes=3)
    model = noisy(build(spec, seed=0))
    auxiliary = create_method("any-size:stages=2").auxiliary(spec)
    assert isinstance(auxiliary, GeneratedVisionTransformer)
    start_from_model(auxiliary, model, rule)
    name = "mlp.fc1.weight"
    layers = torch.stack([block.mlp.fc1.weight for block in model.blocks[3:]])  # type: ignore[union-attr, index]
    expected = layers.mean(0) if rule == "average" else layers[{"first": 0, "middle": 1, "last": 2}[rule]]
    assert torch.equal(auxiliary.genes()[f"blocks.1.{name}"], expected)


@pytest.mark.parametrize("text", ["any-size", "sws", "share-init"])
def test_a_wider_model_of_other_classes_gives_a_part_of_its_channels(text: str) -> None:
    spec = small("vit_small_patch16_dinov3")
    model = noisy(build(spec.replace(width=32, heads=4, depth=6, classes=9, image=48), seed=0))
    auxiliary = create_method(text).auxiliary(spec)
    start_from_model(auxiliary, model, "middle")
    assert bool(auxiliary.eval()(images_of(spec)).isfinite().all())
    assert isinstance(auxiliary, GeneratedVisionTransformer)
    assert auxiliary.genes()["norm.weight"][1] == model.norm.weight[2]  # type: ignore[union-attr, index]


@pytest.mark.parametrize(
    ("text", "architecture", "message"),
    [
        ("tleg", "vit_small_patch16_dinov3", "no blocks to start"),
        ("any-size", "convnext_atto", "student's family"),
        ("any-size", "vit_small_patch14_reg4_dinov2", "student's family"),
    ],
)
def test_what_cannot_start_is_said(text: str, architecture: str, message: str) -> None:
    auxiliary = create_method(text).auxiliary(small("vit_small_patch16_dinov3"))
    with pytest.raises(UserError, match=message):
        start_from_model(auxiliary, build(small(architecture)), "first")


def test_grey_images_see_the_sum_of_the_channels_at_any_width() -> None:
    grey = preset("nano", width=32, depth=2, classes=3, channels=1)
    model = noisy(build(grey.replace(channels=3, image="16x8", width=64, heads=4), seed=0))
    auxiliary = create_method("any-size:stages=2").auxiliary(grey)
    assert isinstance(auxiliary, GeneratedVisionTransformer)
    start_from_model(auxiliary, model, "first")
    kernel = model.patch_embed.proj.weight  # type: ignore[union-attr]
    torch.testing.assert_close(auxiliary.genes()["patch_embed.proj.weight"], kernel[::2].sum(1, keepdim=True))


def test_classes_in_another_order_and_patches_of_another_size() -> None:
    spec = preset("nano", width=32, depth=2, classes=3)
    model = build(spec, seed=0)
    auxiliary = create_method("any-size:stages=2").auxiliary(spec)
    assert isinstance(auxiliary, GeneratedVisionTransformer)
    start_from_model(auxiliary, model, "first", order=[2, 0, 1])
    assert torch.equal(auxiliary.genes()["head.weight"], model.head.weight[[2, 0, 1]])
    sizes = "of patch size 2 and at least width 32, this one has"
    heads = "keeps the head size: the ancestry model's heads are 8 wide"
    for other, message in (({"patch": 4}, sizes), ({"width": 16, "heads": 1}, sizes), ({"heads": 4}, heads)):
        with pytest.raises(UserError, match=message):
            start_from_model(auxiliary, build(spec.replace(**other), seed=0), "first")

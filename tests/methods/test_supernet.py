"""The elastic supernet: which slices there are, which are trained in a step, and how their losses are averaged."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_learngene.errors import UserError
from ray_learngene.methods.elastic import ElasticVisionTransformer, at_width, draw_step
from ray_learngene.methods.registry import create_method
from ray_learngene.methods.shared_weights import kept_layers
from ray_learngene.methods.supernet import Supernet
from ray_learngene.models import costs
from ray_learngene.models.build import build
from ray_learngene.models.specs import Spec
from ray_learngene.training.objectives import (
    DistillationLoss,
    DistillationObjective,
    LabelObjective,
    label_loss,
    mean_loss,
)
from tests.methods.trained import assert_untied, images_of, noisy, specs

SPEC = Spec(width=24, depth=6, heads=3, image=8, patch=4, classes=5)


def auxiliary_of(text: str, spec: Spec = SPEC) -> ElasticVisionTransformer:
    torch.manual_seed(0)
    auxiliary = create_method(text).auxiliary(spec)
    assert isinstance(auxiliary, ElasticVisionTransformer)
    return noisy(auxiliary)


def batch(size: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(size, *SPEC.image, generator=generator), torch.arange(size) % SPEC.classes


@pytest.mark.parametrize(
    ("depth", "of", "even"),
    [
        (1, 6, [0]),
        (2, 6, [0, 5]),
        (3, 6, [0, 2, 5]),
        (4, 6, [0, 2, 3, 5]),
        (5, 6, [0, 1, 2, 4, 5]),
        (6, 6, [0, 1, 2, 3, 4, 5]),
        (3, 16, [0, 8, 15]),
        (6, 16, [0, 3, 6, 9, 12, 15]),
    ],
)
def test_the_layers_of_a_slice(depth: int, of: int, even: list[int]) -> None:
    assert kept_layers(depth, of, "even") == even
    assert kept_layers(depth, of, "first") == list(range(depth))


@given(st.data(), st.integers(1, 60), st.sampled_from(["even", "first"]))
def test_layers_keep_their_order_and_the_ends_are_kept(data: st.DataObject, of: int, rule) -> None:
    depth = data.draw(st.integers(1, of))
    layers = kept_layers(depth, of, rule)
    assert len(layers) == depth and layers == sorted(set(layers))
    assert layers[0] == 0
    if rule == "even" and depth > 1:
        assert layers[-1] == of - 1
        gaps = np.diff(layers)
        assert gaps.max() - gaps.min() <= 1


@given(spec=specs)
@settings(max_examples=10)
def test_the_largest_slice_is_the_network_itself(spec: Spec) -> None:
    auxiliary = auxiliary_of("supernet", spec)
    learngene = auxiliary.method.extract(auxiliary)
    assert learngene.parameters() == costs.parameters(spec)
    network = build(spec).eval()
    network.load_state_dict(learngene.tensors)
    assert torch.equal(auxiliary(images_of(spec)), network(images_of(spec)))
    model = create_method("supernet").expand(learngene, spec)
    assert all(torch.equal(tensor, learngene.tensors[name]) for name, tensor in model.state_dict().items())


def test_a_slice_has_the_first_channels_heads_and_hidden_units() -> None:
    auxiliary = auxiliary_of("supernet:widths=8-16")
    learngene = auxiliary.method.extract(auxiliary)
    spec = SPEC.replace(width=16, heads=2, depth=3)
    model = create_method("supernet").expand(learngene, spec).eval()
    assert_untied(model)
    large, small = learngene.tensors, model.state_dict()
    expected = {
        "patch_embed.proj.weight": large["patch_embed.proj.weight"][:16],
        "patch_embed.proj.bias": large["patch_embed.proj.bias"][:16],
        "pos_embed": large["pos_embed"][:, :, :16],
        "fc_norm.weight": large["fc_norm.weight"][:16],
        "fc_norm.bias": large["fc_norm.bias"][:16],
        "head.weight": large["head.weight"][:, :16],
        "head.bias": large["head.bias"],
    }
    # query, key and value are rows 0-23, 24-47 and 48-71, a head is eight of them
    rows = [*range(16), *range(24, 40), *range(48, 64)]
    for layer, kept in enumerate([0, 2, 5]):
        block = {name.removeprefix(f"blocks.{kept}."): x for name, x in large.items() if f"blocks.{kept}." in name}
        sliced = {
            "norm1.weight": block["norm1.weight"][:16],
            "norm1.bias": block["norm1.bias"][:16],
            "attn.qkv.weight": block["attn.qkv.weight"][rows][:, :16],
            "attn.qkv.bias": block["attn.qkv.bias"][rows],
            "attn.proj.weight": block["attn.proj.weight"][:16, :16],
            "attn.proj.bias": block["attn.proj.bias"][:16],
            "norm2.weight": block["norm2.weight"][:16],
            "norm2.bias": block["norm2.bias"][:16],
            "mlp.fc1.weight": block["mlp.fc1.weight"][:64, :16],
            "mlp.fc1.bias": block["mlp.fc1.bias"][:64],
            "mlp.fc2.weight": block["mlp.fc2.weight"][:16, :64],
            "mlp.fc2.bias": block["mlp.fc2.bias"][:16],
        }
        expected |= {f"blocks.{layer}.{name}": tensor for name, tensor in sliced.items()}
    assert small.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in small.items())
    assert torch.equal(auxiliary.forward_as(spec, images_of(spec)), model(images_of(spec)))


@given(seed=st.integers(0, 2**32 - 1), count=st.integers(0, 3), shallowest=st.integers(1, 8))
@settings(max_examples=50)
def test_the_sandwich_is_the_largest_the_smallest_and_random_slices(seed: int, count: int, shallowest: int) -> None:
    method = Supernet(random=count, shallowest=shallowest, widths=(8, 16))
    drawn = method.choose(SPEC, np.random.default_rng(seed), 0.5)
    assert drawn == method.choose(SPEC, np.random.default_rng(seed), 0.5)
    low = min(shallowest, SPEC.depth)
    assert drawn[:2] == (SPEC, SPEC.replace(width=8, heads=1, depth=low))
    assert len(drawn) == 2 + count
    for spec in drawn[2:]:
        assert low <= spec.depth <= SPEC.depth and spec.width in (8, 16, 24)
        assert spec == at_width(SPEC, spec.width, spec.depth)


def test_every_slice_sees_every_image_and_their_losses_are_averaged() -> None:
    auxiliary = auxiliary_of("supernet:random=2:widths=8").train()
    draw_step(auxiliary, 0, 1, 4)
    images, labels = batch()
    logits = auxiliary(images)
    assert isinstance(logits, tuple) and len(logits) == 4
    for one, spec in zip(logits, auxiliary.drawn, strict=True):
        assert torch.equal(one, auxiliary.forward_as(spec, images))
    assert auxiliary.passes(6) == tuple((spec, 6) for spec in auxiliary.drawn)

    expected = torch.stack([label_loss(one, labels, 0.1) for one in logits]).mean()
    assert torch.equal(LabelObjective(0.1)(auxiliary, images, labels)["loss"], expected)

    ancestry = build(SPEC, seed=9)
    loss = DistillationLoss(alpha=0.7, tau=2.0)
    found = DistillationObjective(ancestry, loss)(auxiliary, images, labels)
    teacher = ancestry.eval()(images)
    each = [loss(one, teacher, labels) for one in logits]
    assert found.keys() == {"loss", "distill_loss", "label_loss"}
    for name, value in found.items():
        assert torch.equal(value, torch.stack([one[name] for one in each]).mean())


def test_one_logits_is_its_own_mean() -> None:
    logits = torch.randn(2, 3)
    assert torch.equal(mean_loss(logits, lambda one: {"loss": one.sum()})["loss"], logits.sum())


def test_what_it_cannot_do_it_says() -> None:
    learngene = create_method("supernet").extract(auxiliary_of("supernet"))
    for change, says in [
        ({"depth": 7}, "supernet cannot grow: the learngene has depth 6, the spec asks for 7"),
        ({"width": 32, "heads": 4}, "supernet cannot grow the width: the learngene has width 24, .* asks for 32"),
        ({"heads": 2}, "supernet keeps the head size: .* 8 wide, those of the spec 12 .*takes 3 heads"),
    ]:
        with pytest.raises(UserError, match=says):
            create_method("supernet").expand(learngene, SPEC.replace(**change))


@pytest.mark.parametrize(
    ("growth", "done", "deepest"), [(0, 0.0, 6), (1, 0.0, 3), (1, 0.5, 4), (1, 1.0, 6), (2, 0.5, 3)]
)
def test_the_largest_slice_can_grow(growth: float, done: float, deepest: int) -> None:
    method = Supernet(growth=growth, random=20)
    drawn = method.choose(SPEC, np.random.default_rng(0), done)
    assert drawn[0] == SPEC.replace(depth=deepest)
    assert {spec.depth for spec in drawn} == set(range(3, deepest + 1))

"""TLEG's line in depth."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_learngene.errors import UserError
from ray_learngene.methods.base import Learngene
from ray_learngene.methods.registry import create_method
from ray_learngene.models import costs
from ray_learngene.models.specs import Spec, preset
from tests.methods.trained import NANO, assert_untied, images_of, layer_of, noisy, specs


def learngene_of(spec: Spec) -> tuple[torch.nn.Module, Learngene]:
    method = create_method("tleg")
    torch.manual_seed(0)
    auxiliary = noisy(method.auxiliary(spec))  # biases and gains are on lines of their own too
    return auxiliary, method.extract(auxiliary)


@given(depth=st.integers(1, 40))
@settings(max_examples=10)
def test_every_block_parameter_is_a_line_in_depth(depth: int) -> None:
    _, learngene = learngene_of(NANO)
    model = create_method("tleg").expand(learngene, NANO.replace(depth=depth))
    assert_untied(model)
    blocks = [layer_of(model, layer) for layer in range(depth)]
    for name in blocks[0]:
        offset, slope = learngene.tensors[f"offset.{name}"], learngene.tensors[f"slope.{name}"]
        for layer, block in enumerate(blocks):
            torch.testing.assert_close(block[name], offset + layer / depth * slope)
        assert torch.equal(blocks[0][name], offset)
        if depth > 2:
            second = torch.stack([block[name] for block in blocks]).double().diff(n=2, dim=0)
            torch.testing.assert_close(second, torch.zeros_like(second), rtol=0, atol=1e-6)


@given(spec=specs)
@settings(max_examples=15)
def test_an_expansion_to_the_auxiliarys_own_spec_computes_its_logits_exactly(spec: Spec) -> None:
    auxiliary, learngene = learngene_of(spec)
    descendant = create_method("tleg").expand(learngene, spec).eval()
    assert torch.equal(auxiliary(images_of(spec)), descendant(images_of(spec)))


def test_the_start_is_timms_block_with_gains_on_the_offset_only() -> None:
    torch.manual_seed(0)
    genes = create_method("tleg").initial(NANO)
    for norm in ("norm1", "norm2"):
        assert torch.equal(genes[f"offset.{norm}.weight"], torch.ones(NANO.width))
        assert torch.equal(genes[f"slope.{norm}.weight"], torch.zeros(NANO.width))
    for part in ("offset", "slope"):
        assert genes[f"{part}.attn.qkv.weight"].std().item() == pytest.approx(0.02, rel=0.1)
        assert not genes[f"{part}.mlp.fc1.bias"].any()
    assert not torch.equal(genes["offset.attn.qkv.weight"], genes["slope.attn.qkv.weight"])


def test_gradients_reach_both_ends_of_the_line() -> None:
    auxiliary, _ = learngene_of(NANO)
    auxiliary(images_of(NANO)).square().sum().backward()
    assert all(parameter.grad.any() for parameter in auxiliary.parameters())


@pytest.mark.parametrize("name", ["ti", "s", "b"])
def test_two_blocks_are_stored_whatever_the_depth(name: str) -> None:
    with torch.device("meta"):
        genes = create_method("tleg").initial(preset(name))
    assert sum(gene.numel() for gene in genes.values()) == costs.parameters(preset(name, depth=2))


def test_another_image_size_or_label_set() -> None:
    _, learngene = learngene_of(NANO)
    spec = NANO.replace(image=16, classes=7, depth=6)
    models = [create_method("tleg").expand(learngene, spec, seed=seed) for seed in (1, 1, 2)]
    assert models[0](torch.randn(1, 3, 16, 16)).shape == (1, 7)
    assert torch.equal(models[0].head.weight, models[1].head.weight)
    assert not torch.equal(models[0].head.weight, models[2].head.weight)
    assert torch.equal(models[0].blocks[3].mlp.fc1.weight, models[2].blocks[3].mlp.fc1.weight)


def test_what_tleg_cannot_do_it_says() -> None:
    _, learngene = learngene_of(NANO)
    with pytest.raises(UserError, match="TLEG cannot change the width: the learngene has width 48"):
        create_method("tleg").expand(learngene, NANO.replace(width=96))
    with pytest.raises(UserError, match="expands a learngene"):
        create_method("tleg").expand(None, NANO)

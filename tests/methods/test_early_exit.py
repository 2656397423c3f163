"""Early exits: every exit in training is the plain model of its depth."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ray_learngene.errors import UserError
from ray_learngene.methods.early_exit import EarlyExit, EarlyExitVisionTransformer, tail_of
from ray_learngene.methods.elastic import draw_step
from ray_learngene.methods.registry import create_method
from ray_learngene.models.build import build, shapes_of
from ray_learngene.models.specs import Spec, spec_for
from ray_learngene.training.flops import forward_flops, training_flops
from tests.methods.trained import images_of, layer_of, noisy
from tests.models.sizes import small

SPEC = Spec(width=16, depth=6, heads=2, image=8, patch=4, classes=5)
ARCHITECTURES = (
    *("vit_small_patch14_reg4_dinov2", "vit_base_patch16_siglip_224", "vit_small_patch16_rope_mixed_224"),
    *("vit_small_patch16_dinov3", "eva02_tiny_patch14_224", "beit_base_patch16_224"),
)


def auxiliary_of(text: str, spec: Spec = SPEC) -> EarlyExitVisionTransformer:
    torch.manual_seed(0)
    auxiliary = create_method(text).auxiliary(spec)
    assert isinstance(auxiliary, EarlyExitVisionTransformer)
    return noisy(auxiliary)


@pytest.mark.parametrize("own", ["", ":own=true"])
@pytest.mark.parametrize("architecture", ["", *ARCHITECTURES])
def test_every_exit_is_the_plain_model_of_its_depth(architecture: str, own: str) -> None:
    spec = small(architecture).replace(depth=4, classes=5) if architecture else SPEC
    text = f"early-exit:shallowest=2{own}"
    method, auxiliary = create_method(text), auxiliary_of(text, spec)
    draw_step(auxiliary.train(), 0, 0, 8)
    images = images_of(spec)
    exits, learngene = auxiliary(images), method.extract(auxiliary)
    assert [one.depth for one in auxiliary.drawn] == list(range(spec.depth, 1, -1))
    for sub_model, logits in zip(auxiliary.drawn, exits, strict=True):
        expanded = method.expand(learngene, sub_model)
        torch.testing.assert_close(expanded.train()(images), logits, rtol=1e-5, atol=1e-5)
    torch.stack([one.square().sum() for one in exits]).sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in auxiliary.parameters())


@pytest.mark.parametrize("checkpointed", [False, True])
def test_a_gradient_is_that_of_the_plain_models(checkpointed: bool) -> None:
    auxiliary = auxiliary_of("early-exit:shallowest=2:own=true").train()
    auxiliary.set_grad_checkpointing(checkpointed)
    draw_step(auxiliary, 0, 0, 8)
    images, names = images_of(SPEC), [name for name, _ in auxiliary.named_parameters()]
    whole = torch.autograd.grad(sum(one.square().sum() for one in auxiliary(images)), list(auxiliary.parameters()))
    parts = [auxiliary.forward_as(spec, images).square().sum() for spec in auxiliary.drawn]
    expected = torch.autograd.grad(sum(parts), list(auxiliary.parameters()))
    for name, one, other in zip(names, whole, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4, msg=lambda said, name=name: f"{name}: {said}")


@given(
    seed=st.integers(0, 99),
    depth=st.integers(1, 16),
    shallowest=st.integers(1, 16),
    exits=st.integers(0, 6),
    growth=st.floats(0, 4),
    done=st.floats(0, 1),
)
def test_a_step_trains_depths_up_to_one_that_grows(
    seed: int, depth: int, shallowest: int, exits: int, growth: float, done: float
) -> None:
    method = EarlyExit(shallowest=shallowest, exits=exits, growth=growth)
    spec = SPEC.replace(depth=depth)
    depths = [one.depth for one in method.choose(spec, np.random.default_rng(seed), done)]
    first = min(shallowest, depth)
    assert depths == sorted({*depths}, reverse=True) and first <= depths[-1] <= depths[0] <= depth
    assert (depths[-1] == first or exits == 1) and len(depths) <= (exits or depth)
    assert exits or depths == list(range(depths[0], first - 1, -1))
    assert depths[0] == depth or (growth and done < method.until)
    assert depths[0] <= method.choose(spec, np.random.default_rng(seed), 1.0)[0].depth == depth


def test_a_step_costs_the_deepest_pass_and_blocks_and_heads_of_the_other_exits() -> None:
    alone = {depth: forward_flops(build(SPEC.replace(depth=depth)), SPEC.image, 4) for depth in (5, 6)}
    head = 2 * 4 * SPEC.width * SPEC.classes
    for text, exits, block in (("own=true", 4, alone[6] - alone[5]), ("own=false", 4, 0), ("exits=1", 0, 0)):
        counted = training_flops(auxiliary_of(f"early-exit:shallowest=2:growth=0:{text}"), SPEC.image, batch=4, steps=3)
        assert counted == 3 * 3 * (alone[6] + exits * (block + head)), text


def test_a_shallower_model_than_the_first_exit_has_its_head_and_a_deeper_one_repeats_layers() -> None:
    auxiliary, method = (
        auxiliary_of("early-exit:shallowest=2:own=true"),
        create_method("early-exit:shallowest=2:own=true"),
    )
    learngene = method.extract(auxiliary)
    assert method.last_block(learngene.tensors, 2).keys() == layer_of(build(SPEC), 0).keys()
    one, two, nine, six = (method.expand(learngene, SPEC.replace(depth=depth)).state_dict() for depth in (1, 2, 9, 6))
    assert all(torch.equal(one[name], two[name]) for name in tail_of(SPEC)) and not torch.equal(
        two["head.weight"], six["head.weight"]
    )
    assert torch.equal(nine["head.weight"], six["head.weight"])
    whole, deeper = build(SPEC), build(SPEC.replace(depth=9))
    whole.load_state_dict(six)
    deeper.load_state_dict(nine)
    layers = [(2 * layer + 1) * 6 // 18 for layer in range(9)]
    assert layers == [0, 1, 1, 2, 3, 3, 4, 5, 5]
    for place, layer in enumerate(layers):
        for name, tensor in layer_of(deeper, place).items():
            times = layers.count(layer) if name.startswith(("attn.proj.", "mlp.fc2.")) else 1
            assert torch.equal(tensor, layer_of(whole, layer)[name] / times), (place, name)


def test_other_classes_get_a_new_head_with_the_norm_of_the_exit() -> None:
    auxiliary, method = auxiliary_of("early-exit:shallowest=2"), create_method("early-exit:shallowest=2")
    learngene = method.extract(auxiliary)
    spec = SPEC.replace(depth=3, classes=4)
    expanded, same = (
        method.expand(learngene, one, seed=3).state_dict() for one in (spec, spec.replace(classes=SPEC.classes))
    )
    assert expanded["head.weight"].shape == (4, SPEC.width)
    assert torch.equal(expanded["fc_norm.weight"], same["fc_norm.weight"])
    assert expanded.keys() == shapes_of(spec).keys()


@pytest.mark.parametrize("architecture", ["swin_tiny_patch4_window7_224", "convnextv2_atto"])
def test_stages_have_no_exits(architecture: str) -> None:
    with pytest.raises(UserError, match="early-exit needs a plain vision transformer, Eva or BEiT"):
        create_method("early-exit").auxiliary(spec_for(architecture, classes=3))


def test_what_it_cannot_do_is_one_line() -> None:
    with pytest.raises(UserError, match="by logits or labels, not by features"):
        create_method("early-exit").auxiliary(SPEC.replace(classes=0))
    learngene = create_method("early-exit").extract(auxiliary_of("early-exit"))
    with pytest.raises(UserError, match="early-exit cannot change the width"):
        create_method("early-exit").expand(learngene, SPEC.replace(width=8, heads=1))
    said = create_method("early-exit").outside(learngene, SPEC.replace(depth=9))
    assert said == "depth 9 is outside of 3 to 6, the depths that early-exit was trained at"

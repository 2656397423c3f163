"""Weight selection: evenly spaced indices of a larger model."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_learngene.errors import UserError
from ray_learngene.methods.registry import create_method
from ray_learngene.methods.weight_selection import evenly_spaced, evenly_spaced_heads
from ray_learngene.models import costs
from ray_learngene.models.build import build
from ray_learngene.models.specs import Spec, spec_for
from tests.methods.trained import NANO, assert_untied, layer_of, learngene_of, trained

LARGE = Spec(width=24, depth=4, heads=6, image=4, patch=2, classes=3)


@pytest.mark.parametrize(
    ("small", "large", "indices"),
    [
        (3, 6, [0, 2, 4]),
        (4, 4, [0, 1, 2, 3]),
        (1, 5, [0]),
        (3, 5, [0, 2, 4]),
        (4, 6, [0, 2, 3, 5]),
        (2, 3, [0, 2]),
        (192, 384, list(range(0, 384, 2))),
    ],
)
def test_the_indices(small: int, large: int, indices: list[int]) -> None:
    assert evenly_spaced(small, large).tolist() == indices


@given(st.integers(1, 800), st.integers(1, 800))
def test_indices_are_distinct_ascending_and_within(one: int, other: int) -> None:
    small, large = sorted((one, other))
    indices = evenly_spaced(small, large)
    assert len(indices) == small and (indices.diff() > 0).all()
    assert indices[0] == 0 and indices[-1] < large
    assert large % small == 0 or indices[-1] == large - 1


def test_whole_heads() -> None:
    assert evenly_spaced_heads(LARGE.heads, 2, 4).tolist() == [0, 1, 2, 3, 12, 13, 14, 15]


def test_every_dimension_is_selected_and_q_k_and_v_apart() -> None:
    spec = LARGE.replace(width=12, heads=3, depth=3)
    model = create_method("weight-selection").expand(learngene_of("weight-selection", LARGE), spec)
    assert_untied(model)
    source = trained(LARGE)
    for layer in range(3):
        have, of = layer_of(model, layer), layer_of(source, layer)
        for part in range(3):
            q, of_q = (block["attn.qkv.weight"].chunk(3)[part] for block in (have, of))
            assert torch.equal(q, of_q[::2, ::2])
            q, of_q = (block["attn.qkv.bias"].chunk(3)[part] for block in (have, of))
            assert torch.equal(q, of_q[::2])
        for name in ("attn.proj.weight", "mlp.fc1.weight", "mlp.fc2.weight"):
            assert torch.equal(have[name], of[name][::2, ::2])
        for name in ("norm1.weight", "norm2.bias", "attn.proj.bias", "mlp.fc1.bias", "mlp.fc2.bias"):
            assert torch.equal(have[name], of[name][::2])
    assert torch.equal(model.patch_embed.proj.weight, source.patch_embed.proj.weight[::2])
    assert torch.equal(model.patch_embed.proj.bias, source.patch_embed.proj.bias[::2])
    assert torch.equal(model.pos_embed, source.pos_embed[:, :, ::2])
    assert torch.equal(model.fc_norm.weight, source.fc_norm.weight[::2])
    assert torch.equal(model.head.weight, build(spec, seed=0).head.weight)


@pytest.mark.parametrize("heads", [1, 2, 4, 5])
def test_the_release_selects_q_k_and_v_at_once(heads: int) -> None:
    spec = LARGE.replace(width=4 * heads, heads=heads, depth=3)
    learngene, source = learngene_of("weight-selection", LARGE), trained(LARGE).state_dict()
    joint, apart = (create_method("weight-selection", qkv=qkv).expand(learngene, spec) for qkv in ("joint", "separate"))
    for name, tensor in joint.state_dict().items():
        if not name.startswith("head."):
            expected = source[name]
            for dim, size in enumerate(tensor.shape):
                expected = expected.index_select(dim, evenly_spaced(size, expected.shape[dim]))
            assert torch.equal(tensor, expected), name
    if LARGE.heads % heads == 0:
        assert torch.equal(joint.blocks[0].attn.qkv.weight, apart.blocks[0].attn.qkv.weight)


def test_whole_heads_are_not_selected_jointly() -> None:
    with pytest.raises(UserError, match="one by one: leave qkv=joint out"):
        create_method("weight-selection:heads=whole:qkv=joint")
    spec = spec_for("eva02_tiny_patch14_224", classes=3, image=28, img_size=28, depth=2)
    with pytest.raises(UserError, match="takes q, k and v of eva02_tiny_patch14_224 one by one"):
        create_method("weight-selection:qkv=joint").expand(learngene_of("weight-selection", spec), spec)


def test_whole_heads_keep_what_a_head_computes() -> None:
    spec = LARGE.replace(width=12, heads=3)
    model = create_method("weight-selection:heads=whole").expand(learngene_of("weight-selection", LARGE), spec)
    have, of = model.blocks[0].attn, trained(LARGE).blocks[0].attn
    heads = of.qkv.weight.view(3, 6, 4, 24)[:, ::2, :, ::2]
    assert torch.equal(have.qkv.weight.view(3, 3, 4, 12), heads)
    assert torch.equal(have.proj.weight.view(12, 3, 4), of.proj.weight.view(24, 6, 4)[::2, ::2])


@given(
    heads=st.integers(1, 6),
    depth=st.integers(1, 4),
    ratio=st.sampled_from([1.0, 2.0, 4.0]),
    how=st.sampled_from(["mixed", "whole"]),
)
@settings(max_examples=20)
def test_any_smaller_spec_gets_values_of_the_source_only(heads: int, depth: int, ratio: float, how: str) -> None:
    spec = LARGE.replace(width=4 * heads, heads=heads, depth=depth, mlp_ratio=ratio)
    model = create_method("weight-selection", heads=how).expand(learngene_of("weight-selection", LARGE), spec)
    source = trained(LARGE).state_dict()
    for name, tensor in model.state_dict().items():
        if not name.startswith("head."):
            assert torch.isin(tensor, source[name]).all(), name


@pytest.mark.parametrize("how", ["mixed", "whole"])
def test_at_equal_width_it_is_the_first_layers_with_a_fresh_head(how: str) -> None:
    spec = LARGE.replace(depth=2)
    model = create_method("weight-selection", heads=how).expand(learngene_of("weight-selection", LARGE), spec, seed=5)
    source, fresh = trained(LARGE).state_dict(), build(spec, seed=5)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, fresh.state_dict()[name] if name.startswith("head.") else source[name])


def test_the_head_is_not_stored() -> None:
    learngene = learngene_of("weight-selection", NANO)
    assert learngene.parameters() == costs.parameters(NANO) - NANO.classes * (NANO.width + 1)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"depth": 5}, "weight selection only shrinks a model: the learngene has depth 4, the spec asks for 5"),
        ({"width": 48, "heads": 12}, "only shrinks a model: the learngene has width 24, the spec asks for 48"),
        ({"mlp_ratio": 8.0}, "only shrinks a model: the learngene has MLP width 96, the spec asks for 192"),
        ({"heads": 3}, "keeps the head size: the learngene's heads are 4 wide, those of the spec 8 .*takes 6 heads"),
        ({"patch": 1}, "weight selection cannot change the patch"),
    ],
)
def test_what_it_cannot_do_it_says(change: dict[str, float], says: str) -> None:
    with pytest.raises(UserError, match=says):
        create_method("weight-selection").expand(learngene_of("weight-selection", LARGE), LARGE.replace(**change))

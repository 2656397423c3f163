"""Mimetic initialisation: products of attention weights near the identity and its negative."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_learngene.errors import UserError
from ray_learngene.methods.mimetic import factors
from ray_learngene.methods.registry import create_method
from ray_learngene.models.build import build
from ray_learngene.models.specs import Spec
from tests.methods.trained import NANO, assert_untied, specs


def products(model, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
    """`W_Q W_Kᵀ` of every head, `[heads, d, d]`, and `W_V W_proj`, `[d, d]`, as they act on row vectors."""
    attention = model.blocks[layer].attn
    width, heads = attention.qkv.in_features, attention.num_heads
    q, k, v = attention.qkv.weight.detach().view(3, heads, width // heads, width)
    return q.mT @ k, (attention.proj.weight.detach() @ v.reshape(width, width)).T


def diagonal(matrices: torch.Tensor) -> torch.Tensor:
    return matrices.diagonal(dim1=-2, dim2=-1)


def test_signs_of_the_diagonals() -> None:
    model = create_method("mimetic").expand(None, NANO)
    for layer in range(NANO.depth):
        query_key, value_projection = products(model, layer)
        assert (diagonal(query_key).mean(-1) > 0.2).all()
        assert (diagonal(value_projection) < 0).all()
        assert diagonal(value_projection).mean().item() == pytest.approx(-0.4, abs=0.05)
        off = value_projection - torch.diag(diagonal(value_projection))
        assert off.abs().mean() < 0.1 and off.mean().abs() < 0.01
    one_head = create_method("mimetic").expand(None, NANO.replace(heads=1))
    query_key, _ = products(one_head, 0)
    assert (diagonal(query_key) > 0).all() and diagonal(query_key).mean().item() == pytest.approx(0.7, abs=0.1)


def test_without_noise_they_are_the_identity() -> None:
    model = create_method("mimetic:alpha1=0:alpha2=0").expand(None, NANO)
    query_key, value_projection = products(model, 0)
    eye = torch.eye(NANO.width)
    torch.testing.assert_close(value_projection, -0.4 * eye, rtol=0, atol=1e-6)
    size = NANO.width // NANO.heads
    for head in query_key:  # 0.7 times a projection: as much of the identity as a head has rank for
        torch.testing.assert_close(head @ head, 0.7 * head, rtol=0, atol=1e-5)
        assert head.trace().item() == pytest.approx(0.7 * size, rel=1e-4)


@given(size=st.integers(1, 12), rank=st.integers(1, 12), seed=st.integers(0, 99))
@settings(max_examples=30)
def test_factors_are_the_nearest_product_of_their_rank(size: int, rank: int, seed: int) -> None:
    rank = min(rank, size)
    matrix = torch.randn(2, size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    left, right = factors(matrix, rank)
    assert left.shape == right.shape == (2, size, rank)
    error = torch.linalg.matrix_norm(matrix - left @ right.mT)
    rest = torch.linalg.svdvals(matrix)[:, rank:].square().sum(-1).sqrt()  # Eckart-Young
    torch.testing.assert_close(error, rest, atol=1e-9, rtol=1e-6)


def test_attention_is_drawn_anew_for_every_head_layer_and_seed() -> None:
    models = [create_method("mimetic").expand(None, NANO, seed=seed) for seed in (0, 0, 1)]
    weights = [torch.stack([block.attn.qkv.weight for block in model.blocks]) for model in models]
    assert torch.equal(weights[0], weights[1])
    assert not torch.isclose(weights[0], weights[2]).any(-1).all()
    assert not torch.equal(weights[0][0], weights[0][1])
    query_key, _ = products(models[0], 0)
    assert not torch.allclose(query_key[0], query_key[1])


@given(spec=specs)
@settings(max_examples=10)
def test_any_spec_and_everything_else_is_timms(spec: Spec) -> None:
    state = torch.get_rng_state()
    model = create_method("mimetic").expand(None, spec, seed=2)
    assert torch.equal(torch.get_rng_state(), state)
    assert_untied(model)
    plain = build(spec, seed=2).state_dict()
    for name, tensor in model.state_dict().items():
        changed = name == "pos_embed" or (name.endswith(("qkv.weight", "proj.weight")) and "attn" in name)
        assert torch.isfinite(tensor).all() and (changed or torch.equal(tensor, plain[name])), name


def test_the_position_embedding_is_sinusoidal() -> None:
    spec = NANO.replace(image=12, patch=2)
    embedding = create_method("mimetic").expand(None, spec).pos_embed.detach()[0].view(6, 6, 2, 2, 12)
    sine, cosine = embedding[:, :, 0], embedding[:, :, 1]
    torch.testing.assert_close(sine.square() + cosine.square(), torch.ones_like(sine))
    # one half of the channels depends on the row only, the other on the column only
    assert (sine[:, :1, 0] == sine[:, :, 0]).all() and (sine[:1, :, 1] == sine[:, :, 1]).all()
    torch.testing.assert_close(sine[:, 0, 0, 0], torch.arange(6.0).sin())


def test_what_it_cannot_do_it_says() -> None:
    with pytest.raises(UserError, match="width divisible by 4"):
        create_method("mimetic").expand(None, NANO.replace(width=6))
    with pytest.raises(UserError, match="no auxiliary model"):
        create_method("mimetic").auxiliary(NANO)

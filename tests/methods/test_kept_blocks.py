"""Heur-LG and Auto-LG: kept blocks at one end, random layers elsewhere."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_learngene.errors import UserError
from ray_learngene.methods.registry import create_method
from ray_learngene.models import costs
from ray_learngene.models.build import build
from ray_learngene.models.specs import Spec, preset
from tests.methods.trained import NANO, assert_untied, layer_of, learngene_of, specs, trained

SOURCE = NANO.replace(depth=8)


def same(block: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(block[name], other[name]) for name in block)


@given(source=specs, depth=st.integers(1, 8), count=st.integers(1, 6), method=st.sampled_from(["heur-lg", "auto-lg"]))
@settings(max_examples=30)
def test_kept_blocks_are_at_their_end_and_the_rest_is_a_fresh_model(source: Spec, depth, count, method) -> None:
    keep = f"last{count}" if method == "heur-lg" else f"first{count}"
    learngene = learngene_of(f"{method}:keep={keep}", source)
    spec = source.replace(depth=depth)
    model, fresh, ancestor = create_method(method).expand(learngene, spec, seed=3), build(spec, seed=3), trained(source)
    assert_untied(model)
    kept = min(count, source.depth, depth)
    for layer in range(depth):
        from_end = depth - layer
        if method == "heur-lg" and from_end <= kept:
            expected = layer_of(ancestor, source.depth - from_end)
        elif method == "auto-lg" and layer < kept:
            expected = layer_of(ancestor, layer)
        else:
            expected = layer_of(fresh, layer)
        assert same(layer_of(model, layer), expected)
    for name in ("patch_embed.proj.weight", "pos_embed", "fc_norm.weight", "head.weight"):
        assert torch.equal(model.state_dict()[name], ancestor.state_dict()[name])


@pytest.mark.parametrize(
    ("text", "layers"),
    [
        ("heur-lg", {5, 6, 7}),
        ("auto-lg", {0, 1, 2, 3, 4, 5}),
        ("auto-lg:keep=first4", {0, 1, 2, 3}),
        ("heur-lg:keep=1-4-7", {1, 4, 7}),
        ("heur-lg:keep=2", {2}),
        ("auto-lg:keep=last99", set(range(8))),
    ],
)
def test_only_the_kept_blocks_are_stored(text: str, layers: set[int]) -> None:
    learngene = learngene_of(text, SOURCE)
    assert {int(name.split(".")[1]) for name in learngene.tensors if name.startswith("blocks.")} == layers
    assert learngene.parameters() == costs.parameters(SOURCE.replace(depth=len(layers)))


def test_stored_sizes_of_the_papers_form() -> None:
    for text, kept in (("heur-lg", 3), ("auto-lg", 6)):
        with torch.device("meta"):
            tensors = build(preset("b", depth=12)).state_dict()
        stored = create_method(text).kept(tensors, preset("b", depth=12))
        assert sum(tensor.numel() for tensor in stored.values()) == costs.parameters(preset("b", depth=kept))


def test_a_list_of_layers_keeps_its_order_in_a_shallow_target() -> None:
    learngene, ancestor = learngene_of("heur-lg:keep=1-4-7", SOURCE), trained(SOURCE)
    model = create_method("heur-lg").expand(learngene, SOURCE.replace(depth=2))
    assert same(layer_of(model, 0), layer_of(ancestor, 4)) and same(layer_of(model, 1), layer_of(ancestor, 7))


@pytest.mark.parametrize("keep", ["some", "last0", "3-1", "2-2", "", "first"])
def test_a_bad_list_is_refused(keep: str) -> None:
    with pytest.raises(UserError, match="expected last3, first6 or layers in ascending order"):
        create_method("heur-lg", keep=keep)


def test_what_they_cannot_do_they_say() -> None:
    learngene = learngene_of("heur-lg", NANO)
    with pytest.raises(UserError, match="heur-lg cannot change the width"):
        create_method("heur-lg").expand(learngene, NANO.replace(width=96))
    with pytest.raises(UserError, match="made with heur-lg:keep=last3, not last2"):
        create_method("heur-lg:keep=last2").expand(learngene, NANO)
    for attempt in ("auxiliary", "extract"):
        with pytest.raises(UserError, match="the source model's layers are 0 to 3"):
            method = create_method("auto-lg:keep=0-9")
            method.auxiliary(NANO) if attempt == "auxiliary" else method.extract(trained(NANO))
    with pytest.raises(UserError, match="expands a learngene"):
        create_method("auto-lg").expand(None, NANO)

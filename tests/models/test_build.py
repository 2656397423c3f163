"""A model built with given weights is the one that was built and then loaded."""

from __future__ import annotations

import pytest
import torch

from ray_learngene.models.build import build, build_with
from ray_learngene.models.specs import PRESETS

SPEC = PRESETS["nano"].replace(depth=2)


@pytest.mark.parametrize("missing", [(), ("head.weight", "head.bias")], ids=["whole", "without head"])
def test_a_model_with_weights_is_the_one_that_was_built_and_loaded(missing: tuple[str, ...]) -> None:
    given = build(SPEC, seed=1).state_dict()
    given["pos_embed"] = given["pos_embed"].transpose(1, 2).contiguous().transpose(1, 2)  # as some methods make it
    given["blocks.1.attn.qkv.weight"] = given["blocks.0.attn.qkv.weight"]  # shared
    state = {name: tensor for name, tensor in given.items() if name not in missing}
    loaded = build(SPEC, seed=2)
    loaded.load_state_dict(state, strict=False)
    made = build_with(SPEC, state, seed=2)
    for (name, expected), (other, tensor) in zip(loaded.named_parameters(), made.named_parameters(), strict=True):
        assert name == other and torch.equal(tensor, expected) and tensor.requires_grad
        assert tensor.stride() == expected.stride()
    pointers = [parameter.data_ptr() for parameter in made.parameters()]
    assert len(set(pointers)) == len(pointers) and not set(pointers) & {x.data_ptr() for x in given.values()}

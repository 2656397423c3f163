"""Share-Init: one block in every layer."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_learngene.errors import UserError
from ray_learngene.methods.registry import create_method
from ray_learngene.models import costs
from ray_learngene.models.specs import Spec, preset
from tests.methods.trained import NANO, assert_untied, images_of, layer_of, specs


@given(spec=specs, depth=st.integers(1, 12))
@settings(max_examples=15)
def test_every_layer_is_the_shared_block(spec: Spec, depth: int) -> None:
    method = create_method("share-init")
    torch.manual_seed(0)
    auxiliary = method.auxiliary(spec).eval()
    learngene = method.extract(auxiliary)
    assert torch.equal(auxiliary(images_of(spec)), method.expand(learngene, spec).eval()(images_of(spec)))
    model = method.expand(learngene, spec.replace(depth=depth))
    assert_untied(model)
    for layer in range(depth):
        for name, tensor in layer_of(model, layer).items():
            assert torch.equal(tensor, learngene.tensors[f"blocks.0.{name}"])


def test_it_is_sws_with_one_stage() -> None:
    shared, staged = create_method("share-init"), create_method("sws", stages=(NANO.depth,))
    torch.manual_seed(0)
    auxiliary = shared.auxiliary(NANO).eval()
    other = staged.auxiliary(NANO).eval()
    other.load_state_dict(auxiliary.genes())
    torch.testing.assert_close(auxiliary(images_of(NANO)), other(images_of(NANO)))
    assert shared.extract(auxiliary).tensors.keys() == staged.extract(other).tensors.keys()


@pytest.mark.parametrize("name", ["ti", "s", "b"])
def test_one_block_is_stored_whatever_the_depth(name: str) -> None:
    with torch.device("meta"):
        genes = create_method("share-init").initial(preset(name))
    assert sum(gene.numel() for gene in genes.values()) == costs.parameters(preset(name, depth=1))


def test_what_share_init_cannot_do_it_says() -> None:
    method = create_method("share-init")
    learngene = method.extract(method.auxiliary(NANO))
    with pytest.raises(UserError, match="Share-Init cannot change the heads"):
        method.expand(learngene, NANO.replace(heads=6))

"""The trained size itself, and what all methods share that start from a trained model."""

import pytest
import torch
from hypothesis import given, settings

from ray_learngene.errors import UserError
from ray_learngene.methods.registry import create_method
from ray_learngene.methods.trained_source import SourceMethod
from ray_learngene.models import costs
from ray_learngene.models.blocks import set_drop_path
from ray_learngene.models.build import spec_of
from ray_learngene.models.specs import Spec
from tests.methods.trained import NANO, assert_untied, images_of, learngene_of, specs, trained


@given(spec=specs)
@settings(max_examples=15)
def test_the_descendant_is_the_trained_model(spec: Spec) -> None:
    learngene = learngene_of("pretrained", spec)
    assert learngene.spec == spec and learngene.parameters() == costs.parameters(spec)
    model = create_method("pretrained").expand(learngene, spec).eval()
    assert_untied(model)
    assert torch.equal(model(images_of(spec)), trained(spec)(images_of(spec)))


def test_truncated_it_is_the_first_layers() -> None:
    learngene, whole = learngene_of("pretrained", NANO), trained(NANO)
    model = create_method("pretrained:truncate=true").expand(learngene, NANO.replace(depth=3)).eval()
    whole.blocks = whole.blocks[:3]
    assert torch.equal(model(images_of(NANO)), whole(images_of(NANO)))


def test_another_image_size_or_label_set() -> None:
    model = create_method("pretrained").expand(learngene_of("pretrained", NANO), NANO.replace(image=16, classes=7))
    assert model(torch.randn(1, 3, 16, 16)).shape == (1, 7)
    assert torch.equal(model.blocks[3].mlp.fc1.weight, trained(NANO).blocks[3].mlp.fc1.weight)


@pytest.mark.parametrize(
    ("text", "change", "says"),
    [
        ("pretrained", {"depth": 3}, "gives the trained size only: .* depth 4, the spec asks for 3 .*truncate=true"),
        ("pretrained", {"depth": 5}, "gives the trained size only: the learngene has depth 4, the spec asks for 5$"),
        ("pretrained:truncate=true", {"depth": 5}, "gives the trained size only"),
        ("pretrained", {"width": 96}, "pretrained cannot change the width: the learngene has width 48"),
    ],
)
def test_what_it_cannot_do_it_says(text: str, change: dict[str, int], says: str) -> None:
    with pytest.raises(UserError, match=says):
        create_method(text).expand(learngene_of("pretrained", NANO), NANO.replace(**change))


@pytest.mark.parametrize("text", ["pretrained", "heur-lg", "auto-lg", "weight-selection", "ligo"])
def test_a_source_method_distils_a_plain_model_and_takes_any_trained_one(text: str) -> None:
    method = create_method(text)
    assert isinstance(method, SourceMethod)
    auxiliary = method.auxiliary(NANO, drop_path=0.3)
    assert auxiliary.spec == NANO == spec_of(auxiliary)
    assert auxiliary.blocks[-1].drop_path1.drop_prob == pytest.approx(0.3)
    set_drop_path(auxiliary, 0.0)
    learngene = method.extract(auxiliary)
    assert learngene.options == method.options() and learngene.spec == NANO
    before = {name: tensor.clone() for name, tensor in learngene.tensors.items()}
    with torch.no_grad():
        for parameter in auxiliary.parameters():
            parameter.zero_()
    assert all(torch.equal(tensor, before[name]) for name, tensor in learngene.tensors.items())
    with pytest.raises(UserError, match="not made by timm.create_model"):
        method.extract(torch.nn.Linear(2, 2))

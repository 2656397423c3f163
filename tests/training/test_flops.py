"""FLOPs of training, counted, against the multiply-accumulates of the specs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings

from ray_learngene.methods.elastic import ElasticVisionTransformer, draw_step
from ray_learngene.methods.registry import create_method
from ray_learngene.models.blocks import set_drop_path
from ray_learngene.models.build import build
from ray_learngene.models.costs import macs
from ray_learngene.models.specs import Spec
from ray_learngene.training.flops import forward_flops, training_flops
from tests.methods.trained import specs

SPEC = Spec(width=24, depth=7, heads=3, image=8, patch=4, classes=5)


@given(spec=specs)
@settings(max_examples=6)
def test_a_forward_pass_is_two_flops_for_each_multiply_accumulate(spec: Spec) -> None:
    model = build(spec)
    set_drop_path(model, 0.1)
    for batch in (1, 3):
        assert forward_flops(model, spec.image, batch) == 2 * batch * macs(spec)
    assert training_flops(model, spec.image, batch=3, steps=5) == 6 * macs(spec) * 3 * 5
    assert model.training and next(model.parameters()).device.type == "cpu"


@pytest.mark.parametrize("name", ["sws", "tleg", "share-init", "pretrained"])
def test_an_auxiliary_costs_what_a_model_of_its_depth_does(name: str) -> None:
    auxiliary = create_method(name).auxiliary(SPEC, drop_path=0.1)
    assert training_flops(auxiliary, SPEC.image, batch=6, steps=10) == 6 * macs(SPEC) * 6 * 10


@pytest.mark.parametrize("text", ["any-size", "any-size:widths=8-16", "any-size:parts=3:step=0"])
@pytest.mark.parametrize("batch", [10, 2])
def test_any_size_costs_the_models_that_its_images_pass_through(text: str, batch: int) -> None:
    method = create_method(text)
    auxiliary = method.auxiliary(SPEC, drop_path=0.1)
    assert isinstance(auxiliary, ElasticVisionTransformer)
    drawn = auxiliary.drawn
    expected = 0
    for step in range(3):
        parts = auxiliary.method.choose(SPEC, np.random.default_rng([5, step]), (step or 3) / 3)
        expected += sum(6 * macs(parts[image % len(parts)]) for image in range(batch))
    assert training_flops(auxiliary, SPEC.image, batch=batch, steps=3, seed=5) == expected
    assert auxiliary.drawn == drawn and next(auxiliary.parameters()).device.type == "cpu"


def test_a_step_of_any_size_costs_one_of_middle_depth_where_nothing_grows() -> None:
    auxiliary = create_method("any-size:growth=0").auxiliary(SPEC)
    middle = macs(SPEC.replace(depth=5))  # of 3 to 7
    found = training_flops(auxiliary, SPEC.image, batch=8, steps=200)
    assert found == pytest.approx(6 * middle * 8 * 200, rel=0.02)


def test_a_supernet_costs_all_its_slices_on_all_images() -> None:
    auxiliary = create_method("supernet:random=2:widths=8").auxiliary(SPEC)
    expected = 0
    for step in range(4):
        draw_step(auxiliary, 1, step, 4)
        expected += sum(6 * macs(spec) * 10 for spec in auxiliary.drawn)
    assert training_flops(auxiliary, SPEC.image, batch=10, steps=4, seed=1) == expected


@pytest.mark.parametrize("text", ["wave", "wave:template=8"])
def test_wave_costs_the_product_of_scalers_and_templates_too(text: str) -> None:
    auxiliary = create_method(text).auxiliary(SPEC)
    genes = auxiliary.genes()
    product = sum(
        2 * scalers.numel() * genes[name.replace("scalers.", "templates.")][0].numel()
        for name, scalers in genes.items()
        if name.startswith("scalers.")
    )
    assert product > 0
    for batch in (1, 4):  # the product is made once, whatever the batch
        assert forward_flops(auxiliary, SPEC.image, batch) == 2 * batch * macs(SPEC) + product
    assert training_flops(auxiliary, SPEC.image, batch=4, steps=3) == 9 * (2 * 4 * macs(SPEC) + product)


def test_counting_leaves_the_generator_alone() -> None:
    auxiliary = create_method("any-size").auxiliary(SPEC, drop_path=0.2)
    before = torch.get_rng_state()
    training_flops(auxiliary, SPEC.image, batch=4, steps=2)
    assert torch.equal(before, torch.get_rng_state())

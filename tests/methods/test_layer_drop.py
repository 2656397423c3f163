"""LayerDrop: which layers a step trains, and which ones a shallower model takes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ray_learngene.errors import UserError
from ray_learngene.methods.elastic import draw_step
from ray_learngene.methods.layer_drop import LayerDrop, LayerDropVisionTransformer
from ray_learngene.methods.registry import create_method
from ray_learngene.models.build import build
from ray_learngene.models.specs import Spec, spec_for
from tests.methods.trained import assert_untied, images_of, layer_of, noisy

SPEC = Spec(width=16, depth=6, heads=2, image=8, patch=4, classes=5)


def auxiliary_of(text: str) -> LayerDropVisionTransformer:
    torch.manual_seed(0)
    auxiliary = create_method(text).auxiliary(SPEC)
    assert isinstance(auxiliary, LayerDropVisionTransformer)
    return noisy(auxiliary)


def without_layers(auxiliary: LayerDropVisionTransformer, layers: tuple[int, ...]) -> torch.nn.Module:
    """The plain model of those layers of the auxiliary model."""
    model = build(SPEC.replace(depth=len(layers))).eval()
    whole = build(SPEC)
    whole.load_state_dict(auxiliary.genes())
    state = {name: tensor for name, tensor in whole.state_dict().items() if not name.startswith("blocks.")}
    for place, layer in enumerate(layers):
        state |= {f"blocks.{place}.{name}": tensor for name, tensor in layer_of(whole, layer).items()}
    model.load_state_dict(state)
    return model


@given(seed=st.integers(0, 2**32 - 1), depth=st.integers(1, 16), rate=st.floats(0, 0.99))
def test_a_step_keeps_some_layers_in_their_order(seed: int, depth: int, rate: float) -> None:
    kept = LayerDrop(rate=rate).sample(depth, np.random.default_rng(seed))
    assert kept and kept == tuple(sorted({*kept})) and set(kept) <= set(range(depth))
    assert kept == LayerDrop(rate=rate).sample(depth, np.random.default_rng(seed))
    assert rate or kept == tuple(range(depth))


def test_layers_are_left_out_at_the_given_rate() -> None:
    generator = np.random.default_rng(0)
    kept = [len(LayerDrop(rate=0.3).sample(10, generator)) for _ in range(2000)]
    assert np.mean(kept) == pytest.approx(7, abs=5 * np.sqrt(2.1 / 2000))


def test_training_runs_the_sampled_layers_and_evaluation_all_of_them() -> None:
    auxiliary, seen = auxiliary_of("layerdrop:rate=0.5"), set()
    for step in range(1, 6):
        draw_step(auxiliary.train(), 0, step, 8)
        assert torch.equal(auxiliary(images_of(SPEC)), without_layers(auxiliary, auxiliary.kept)(images_of(SPEC)))
        ((spec, images),) = auxiliary.passes(4)
        assert (spec.depth, images) == (len(auxiliary.kept), 4)
        seen.add(auxiliary.kept)
    assert len(seen) > 2
    everything = without_layers(auxiliary, tuple(range(6)))
    assert torch.equal(auxiliary.eval()(images_of(SPEC)), everything(images_of(SPEC)))


def test_a_layer_that_is_left_out_gets_a_gradient_of_zero() -> None:
    auxiliary = auxiliary_of("layerdrop:rate=0.5").train()
    draw_step(auxiliary, 0, 1, 8)
    assert len(auxiliary.kept) < 6
    auxiliary(images_of(SPEC)).sum().backward()
    for layer in range(6):
        gradient = getattr(auxiliary, f"blocks__{layer}__mlp__fc1__weight").grad
        assert bool(gradient.any()) == (layer in auxiliary.kept)


def test_the_first_step_takes_all_layers_so_that_a_lack_of_memory_shows() -> None:
    auxiliary = auxiliary_of("layerdrop:rate=0.9")
    draw_step(auxiliary, 0, 0, 8)
    assert auxiliary.kept == tuple(range(6))


@pytest.mark.parametrize(("layers", "kept"), [("even", (0, 2, 5)), ("first", (0, 1, 2))])
def test_a_shallower_model_takes_evenly_spaced_or_the_first_layers(layers: str, kept: tuple[int, ...]) -> None:
    auxiliary = auxiliary_of("layerdrop")
    learngene = auxiliary.method.extract(auxiliary)
    model = create_method("layerdrop", layers=layers).expand(learngene, SPEC.replace(depth=3)).eval()
    assert_untied(model)
    assert torch.equal(model(images_of(SPEC)), without_layers(auxiliary, kept)(images_of(SPEC)))


def test_what_it_cannot_do_it_says() -> None:
    auxiliary = auxiliary_of("layerdrop")
    learngene = auxiliary.method.extract(auxiliary)
    with pytest.raises(UserError, match="layerdrop cannot grow: the learngene has depth 6, the spec asks for 7"):
        create_method("layerdrop").expand(learngene, SPEC.replace(depth=7))
    with pytest.raises(UserError, match="layerdrop cannot change the width"):
        create_method("layerdrop").expand(learngene, SPEC.replace(width=8, heads=1))
    with pytest.raises(UserError, match="swin_tiny_patch4_window7_224 has several: use supernet"):
        create_method("layerdrop").auxiliary(spec_for("swin_tiny_patch4_window7_224", classes=3))

"""Any-size: the depths and widths of a step, the scale of a branch, and one step over several workers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ray_learngene.errors import UserError
from ray_learngene.methods.any_size import AnySize, untied_layers
from ray_learngene.methods.base import Learngene
from ray_learngene.methods.elastic import ElasticVisionTransformer, at_width, draw_step
from ray_learngene.methods.registry import create_method
from ray_learngene.methods.shared_weights import require_same
from ray_learngene.methods.sws import stage_of_layer
from ray_learngene.models.specs import Spec, spec_for
from ray_learngene.training.objectives import LabelObjective
from tests.methods.trained import assert_untied, images_of, noisy

SPEC = Spec(width=24, depth=12, heads=3, image=8, patch=4, classes=5)


def auxiliary_of(text: str, spec: Spec = SPEC) -> tuple[ElasticVisionTransformer, Learngene]:
    method = create_method(text)
    torch.manual_seed(0)
    auxiliary = noisy(method.auxiliary(spec))
    assert isinstance(auxiliary, ElasticVisionTransformer)
    return auxiliary, method.extract(auxiliary)


def batch(size: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(size, *SPEC.image, generator=generator), torch.arange(size) % SPEC.classes


# Expansion.


@given(depth=st.integers(1, 20), stages=st.integers(1, 6))
@settings(max_examples=15)
def test_without_a_scale_it_expands_as_sws_does(depth: int, stages: int) -> None:
    _, learngene = auxiliary_of(f"any-size:step=0:stages={stages}")
    as_sws = Learngene("sws", {"stages": [1] * stages}, SPEC, learngene.tensors)
    spec = SPEC.replace(depth=depth)
    expected = create_method("sws").expand(as_sws, spec).state_dict()
    model = create_method("any-size").expand(learngene, spec)
    assert_untied(model)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())


class Scaled(nn.Module):
    """A residual branch times a number."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.scale * x


@pytest.mark.parametrize("step", [0.5, 1.0])
@pytest.mark.parametrize("depth", [1, 3, 6, 7, 24])
def test_the_scale_of_a_branch_folds_into_its_last_matrix(step: float, depth: int) -> None:
    _, learngene = auxiliary_of(f"any-size:step={step}")
    spec = SPEC.replace(depth=depth)
    model = create_method("any-size").expand(learngene, spec).eval()
    plain = Learngene("any-size", {**learngene.options, "step": 0}, SPEC, learngene.tensors)
    explicit = create_method("any-size").expand(plain, spec).eval()
    scale = (SPEC.depth / 2 / depth) ** step
    for block in explicit.blocks:
        block.ls1 = block.ls2 = Scaled(scale)
    logits, expected = model(images_of(spec)), explicit(images_of(spec))
    if np.log2(scale).is_integer():  # then it rounds nothing
        assert torch.equal(logits, expected)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("width", "heads", "depth"), [(24, 3, 12), (24, 3, 5), (16, 2, 12), (8, 1, 4)])
def test_a_descendant_computes_what_was_trained_at_its_depth_and_width(width: int, heads: int, depth: int) -> None:
    auxiliary, learngene = auxiliary_of("any-size:widths=8-16")
    spec = SPEC.replace(width=width, heads=heads, depth=depth)
    descendant = create_method("any-size").expand(learngene, spec).eval()
    assert_untied(descendant)
    assert torch.equal(auxiliary.forward_as(spec, images_of(spec)), descendant(images_of(spec)))


def test_depths_that_were_not_trained_are_outside() -> None:
    _, learngene = auxiliary_of("any-size:shallowest=3")
    method = create_method("any-size")
    narrow = SPEC.replace(width=SPEC.width // 3, heads=1)
    note = f"width {narrow.width} is none that any-size was trained at: {SPEC.width}"
    assert method.outside(learngene, narrow) == note
    notes = {depth: method.outside(learngene, SPEC.replace(depth=depth)) for depth in range(1, SPEC.depth + 3)}
    assert {depth for depth, note in notes.items() if note} == {1, 2, SPEC.depth + 1, SPEC.depth + 2}
    assert notes[2] == f"depth 2 is outside of 3 to {SPEC.depth}, the depths that any-size was trained at"
    _, shallow = auxiliary_of("any-size:shallowest=3", SPEC.replace(depth=2))
    assert method.outside(shallow, SPEC) == f"depth {SPEC.depth} is not 2, the only depth that any-size was trained at"


@pytest.mark.parametrize("stages", [1, 3, 5])
def test_untied_layers_begin_as_the_stages_that_they_start_from(stages: int) -> None:
    """Any size has the logits of the shared stages; then one block of the auxiliary changes only what takes it."""
    _, shared = auxiliary_of(f"any-size:stages={stages}:shallowest=2")
    method = create_method(f"any-size:stages={stages}:shallowest=2:untied=true")
    assert isinstance(method, AnySize)
    genes = method.started(shared.tensors, SPEC)
    learngene = Learngene("any-size", method.options(), SPEC, genes)
    assert {name for name in genes if name.startswith("blocks.")} >= {
        f"blocks.{layer}.norm1.weight" for layer in range(12)
    }
    for depth in (1, 2, 3, 7, 12, 17):
        spec = SPEC.replace(depth=depth)
        state, expected = (create_method("any-size").expand(one, spec).state_dict() for one in (learngene, shared))
        assert all(torch.equal(tensor, expected[name]) for name, tensor in state.items())
    assert method.started(genes, SPEC).keys() == genes.keys()  # of its own kind it starts as it is


@given(depth=st.integers(1, 30), of=st.integers(1, 16), stages=st.integers(1, 6))
def test_untied_layers_keep_their_order_and_stage(depth: int, of: int, stages: int) -> None:
    layers = untied_layers(depth, of, stages)
    shared = min(stages, of)
    of_stage = stage_of_layer(of, (1,) * shared)
    assert layers == sorted(layers)
    assert tuple(of_stage[layer] for layer in layers) == stage_of_layer(depth, (1,) * shared)
    assert depth != of or layers == list(range(of))


def test_untied_layers_take_no_corrections() -> None:
    with pytest.raises(UserError, match="untied layers need no corrections"):
        create_method("any-size:untied=true:corrections=0.1")


def test_corrections_of_zero_change_nothing_and_others_only_their_layers() -> None:
    """The layer of a model is corrected by the auxiliary's layer at the same height."""
    _, learngene = auxiliary_of("any-size:corrections=0.1")
    corrected = {name: tensor for name, tensor in learngene.tensors.items() if name.startswith("correction.")}
    shared = {name: tensor for name, tensor in learngene.tensors.items() if name not in corrected}
    method = create_method("any-size")
    plain = Learngene("any-size", {**learngene.options, "corrections": 0}, SPEC, shared)
    none = {name: torch.zeros_like(tensor) for name, tensor in corrected.items()}
    one = none | {name: tensor for name, tensor in corrected.items() if name.startswith("correction.blocks.7.")}
    for depth in (2, 5, 12, 14):
        spec = SPEC.replace(depth=depth)
        expected = method.expand(plain, spec).state_dict()
        for corrections in (none, one):
            made = Learngene("any-size", learngene.options, SPEC, shared | corrections)
            changed = {
                int(name.split(".")[1])
                for name, tensor in method.expand(made, spec).state_dict().items()
                if not torch.equal(tensor, expected[name])
            }
            same_height = {layer for layer in range(depth) if (2 * layer + 1) * 12 // (2 * depth) == 7}
            assert changed == (same_height if corrections is one else set())


# What a step draws.


@given(
    depth=st.integers(1, 40),
    shallowest=st.integers(1, 45),
    parts=st.integers(1, 8),
    seed=st.integers(0, 2**32 - 1),
    done=st.floats(0, 1, exclude_max=True),
)
@settings(max_examples=100)
def test_every_part_of_the_range_of_depths_gives_one(
    depth: int, shallowest: int, parts: int, seed: int, done: float
) -> None:
    method = AnySize(shallowest=shallowest, parts=parts, growth=0)
    source = SPEC.replace(depth=depth)
    drawn = [method.choose(source, np.random.default_rng(seed), done) for _ in range(2)]
    assert drawn[0] == drawn[1]
    low = min(shallowest, depth)
    numbers = depth + 1 - low
    assert len(drawn[0]) == parts
    for part, spec in enumerate(drawn[0]):
        assert low <= spec.depth <= depth
        # the depths that the part's share of the range touches
        assert part * numbers // parts <= spec.depth - low <= -(-(part + 1) * numbers // parts) - 1
        assert spec == source.replace(depth=spec.depth)


def test_all_depths_are_drawn_alike_often_and_a_step_is_of_middle_depth() -> None:
    method, generator = AnySize(growth=0), np.random.default_rng(0)
    depths = np.array([[spec.depth for spec in method.choose(SPEC, generator, 0.5)] for _ in range(2000)])
    counts = np.bincount(depths.ravel())
    assert counts[:3].sum() == 0 and len(counts) == 13
    np.testing.assert_allclose(counts[3:] / depths.size, 1 / 10, atol=0.01)
    assert depths.mean() == pytest.approx((3 + 12) / 2, abs=0.05)
    # stratified: a step's own mean hardly varies, against 1.4 where depths are drawn independently
    assert depths.mean(1).std() < 0.5


@given(
    seed=st.integers(0, 2**32 - 1),
    growth=st.floats(0.5, 8),
    shallowest=st.integers(1, 12),
    done=st.floats(0, 1, exclude_max=True),
)
@settings(max_examples=100)
def test_the_range_grows_from_the_shallowest_to_the_whole(
    seed: int, growth: float, shallowest: int, done: float
) -> None:
    method = AnySize(growth=growth, shallowest=shallowest)

    def depths(done: float) -> list[int]:
        return [spec.depth for spec in method.choose(SPEC, np.random.default_rng(seed), done)]

    assert depths(0.0) == [shallowest] * method.parts
    assert all(now <= later for now, later in zip(depths(done), depths((1 + done) / 2), strict=True))
    assert max(depths(done)) <= shallowest + (SPEC.depth - shallowest) * done**growth + 1
    assert depths(1.0)[-1] == SPEC.depth
    assert all(now <= most for now, most in zip(depths(done), depths(1.0), strict=True))


def test_a_training_draws_every_depth() -> None:
    auxiliary, _ = auxiliary_of("any-size")
    drawn = set()
    for step in range(200):
        draw_step(auxiliary, 0, step, 200)
        drawn |= {spec.depth for spec in auxiliary.drawn}
    assert drawn == set(range(3, SPEC.depth + 1))


@given(depth=st.integers(1, 8), stages=st.integers(1, 8), shallowest=st.integers(1, 8))
@settings(max_examples=8)
def test_every_stage_is_trained(depth: int, stages: int, shallowest: int) -> None:
    spec = Spec(width=8, depth=depth, heads=1, image=4, patch=4, classes=2)
    auxiliary, _ = auxiliary_of(f"any-size:stages={stages}:shallowest={shallowest}", spec)
    auxiliary.train()
    for step in range(32):
        draw_step(auxiliary, 0, step, 32)
        if any(drawn.depth == depth for drawn in auxiliary.drawn):
            auxiliary(torch.randn(4, 3, 4, 4)).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in auxiliary.parameters())


@given(seed=st.integers(0, 2**32 - 1), widths=st.sampled_from([(8,), (16,), (8, 16), (8, 24)]))
@settings(max_examples=50)
def test_widths_take_turns(seed: int, widths: tuple[int, ...]) -> None:
    drawn = AnySize(widths=widths).choose(SPEC, np.random.default_rng(seed), 0.9)
    counts = [sum(spec.width == width for spec in drawn) for width in sorted({*widths, SPEC.width})]
    assert sum(counts) == 4 and max(counts) - min(counts) <= 1
    assert all(spec == at_width(SPEC, spec.width, spec.depth) and spec.width == 8 * spec.heads for spec in drawn)


def test_a_width_meets_every_part_of_the_depths() -> None:
    method, generator = AnySize(widths=(8,)), np.random.default_rng(0)
    widths = np.array([[spec.width for spec in method.choose(SPEC, generator, 0.0)] for _ in range(1000)])
    np.testing.assert_allclose((widths == 8).mean(0), 0.5, atol=0.06)


def test_what_is_drawn_depends_on_seed_and_step_alone() -> None:
    workers = [auxiliary_of("any-size:widths=8-16")[0] for _ in range(2)]
    torch.manual_seed(5)
    before = torch.get_rng_state()
    seen = set()
    for seed, step in [(0, 7), (0, 8), (1, 7)]:
        for worker in workers:
            draw_step(worker, seed, step, 10)
        assert workers[0].drawn == workers[1].drawn
        seen.add(workers[0].drawn)
    assert len(seen) == 3
    draw_step(workers[0], 0, 7, 10)  # whatever was drawn in between
    draw_step(workers[1], 0, 7, 10)
    assert workers[0].drawn == workers[1].drawn
    assert torch.equal(before, torch.get_rng_state())


# A training step.


@pytest.mark.parametrize("size", [1, 2, 4, 7, 16])
def test_the_parts_of_a_batch_pass_through_their_own_models_and_stay_in_order(size: int) -> None:
    auxiliary, _ = auxiliary_of("any-size:widths=8")
    images, _ = batch(size)
    auxiliary.train()
    draw_step(auxiliary, 0, 0, 8)
    logits = auxiliary(images)
    assert logits.shape == (size, SPEC.classes)
    for part, spec in enumerate(auxiliary.drawn[:size]):
        assert torch.equal(logits[part::4], auxiliary.forward_as(spec, images[part::4]))
    assert sum(count for _, count in auxiliary.passes(size)) == size
    assert [count for _, count in auxiliary.passes(size)] == [len(images[part::4]) for part in range(4)]


def test_every_image_teaches() -> None:
    auxiliary, _ = auxiliary_of("any-size")
    images, labels = batch(10)
    images.requires_grad_()
    auxiliary.train()
    draw_step(auxiliary, 0, 0, 8)
    LabelObjective()(auxiliary, images, labels)["loss"].backward()
    assert images.grad is not None
    assert (images.grad.flatten(1).abs().sum(1) > 0).all()


@pytest.mark.parametrize("workers", [2, 4])
def test_the_gradient_is_the_same_for_every_number_of_workers(workers: int) -> None:
    auxiliary, _ = auxiliary_of("any-size:widths=8-16")
    images, labels = batch(16)
    auxiliary.train()

    def gradient(images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        auxiliary.zero_grad()
        draw_step(auxiliary, 3, 11, 12)
        LabelObjective()(auxiliary, images, labels)["loss"].backward()
        return torch.cat([parameter.grad.flatten() for parameter in auxiliary.parameters()])

    whole = gradient(images, labels)
    shares = zip(images.chunk(workers), labels.chunk(workers), strict=True)
    torch.testing.assert_close(torch.stack([gradient(*share) for share in shares]).mean(0), whole, rtol=1e-4, atol=1e-6)


def test_in_evaluation_it_is_the_largest_whatever_was_drawn() -> None:
    auxiliary, _ = auxiliary_of("any-size:widths=8")
    draw_step(auxiliary, 0, 0, 8)
    assert torch.equal(auxiliary(images_of(SPEC)), auxiliary.forward_as(SPEC, images_of(SPEC)))


# Refusals.


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"width": 32, "heads": 4}, "any-size cannot grow the width: the learngene has width 24, the spec asks for 32"),
        ({"heads": 2}, "any-size keeps the head size: .* 8 wide, those of the spec 12 .*takes 3 heads"),
        ({"width": 16, "heads": 4}, "any-size keeps the head size: .* 8 wide, those of the spec 4 .*takes 2 heads"),
        ({"patch": 2}, "any-size cannot change the patch: the learngene has patch 4, the spec asks for 2"),
        ({"mlp_ratio": 2.0}, "any-size cannot change the mlp_ratio"),
    ],
)
def test_what_it_cannot_do_it_says(change: dict[str, float], says: str) -> None:
    _, learngene = auxiliary_of("any-size")
    with pytest.raises(UserError, match=says):
        create_method("any-size").expand(learngene, SPEC.replace(**change))


@pytest.mark.parametrize("width", [12, 32])
@pytest.mark.parametrize("name", ["any-size", "supernet"])
def test_widths_that_are_no_slices_are_refused_before_anything_is_trained(name: str, width: int) -> None:
    with pytest.raises(UserError, match=f"{name}: widths are multiples of the head size 8 up to 24, not {width}"):
        create_method(f"{name}:widths={width}").auxiliary(SPEC)


def test_a_learngene_of_another_model_than_the_presets_says_so() -> None:
    arguments = {"img_size": 8, "patch_size": 2, "embed_dim": 32, "depth": 4, "num_heads": 2}
    spec = spec_for("deit_small_patch16_224", classes=10, **arguments)  # it has a class token
    with pytest.raises(UserError, match="the presets' plain vision transformer, the spec asks for deit_small_patch16"):
        require_same("any-size", SPEC, spec)

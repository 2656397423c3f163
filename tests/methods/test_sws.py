"""The mathematics of SWS: layouts, exact expansion, stored sizes, gradients of shared blocks."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_learngene.errors import UserError
from ray_learngene.methods.base import Learngene
from ray_learngene.methods.registry import create_method
from ray_learngene.methods.sws import StageSharedVisionTransformer, balanced_layout, layers_per_stage, stage_of_layer
from ray_learngene.models import costs
from ray_learngene.models.specs import PRESETS, preset

LAYOUT = (3, 3, 4, 3, 3)
NANO = PRESETS["nano"]
layouts = st.lists(st.integers(1, 5), min_size=1, max_size=6).map(tuple)


def learngene_of(layout: tuple[int, ...] = LAYOUT) -> tuple[StageSharedVisionTransformer, Learngene]:
    torch.manual_seed(0)
    method = create_method("sws", stages=layout)
    auxiliary = method.auxiliary(NANO).eval()
    return auxiliary, method.extract(auxiliary)


def test_the_published_mapping() -> None:
    assert stage_of_layer(12, LAYOUT) == (0, 0, 0, 1, 1, 1, 2, 2, 3, 3, 4, 4)


@pytest.mark.parametrize(
    ("depth", "counts"),
    list(
        zip(
            range(6, 16),
            ["21111", "22111", "22211", "22221", "22222", "32222", "33222", "33322", "33332", "33333"],
            strict=True,
        )
    ),
)
def test_the_table_of_depths(depth: int, counts: str) -> None:
    assert layers_per_stage(depth, LAYOUT) == tuple(map(int, counts))


def test_the_papers_auxiliary_layout_is_the_balanced_one() -> None:
    assert balanced_layout(16, 5) == LAYOUT


@pytest.mark.parametrize(("depth", "stages"), [(1, (2,)), (2, (1, 3)), (3, (0, 2, 4)), (4, (0, 1, 3, 4))])
def test_a_depth_below_the_number_of_stages_takes_them_evenly_spaced(depth: int, stages: tuple[int, ...]) -> None:
    assert stage_of_layer(depth, LAYOUT) == stages


@given(
    st.integers(1, 40), layouts, st.sampled_from(["cyclic", "random", "proportional", "unbalanced"]), st.integers(0, 5)
)
def test_every_rule_covers_the_depth_in_stage_order(depth: int, layout: tuple[int, ...], rule, seed: int) -> None:
    stages = stage_of_layer(depth, layout, rule, seed)
    assert len(stages) == depth
    assert list(stages) == sorted(stages)
    if depth >= len(layout):
        assert set(stages) == set(range(len(layout)))


@given(layouts)
def test_proportional_gives_back_the_auxiliarys_own_layout(layout: tuple[int, ...]) -> None:
    assert layers_per_stage(sum(layout), layout, "proportional") == layout


def test_ablations() -> None:
    assert stage_of_layer(7, LAYOUT, "interleaved") == (0, 1, 2, 3, 4, 0, 1)
    assert layers_per_stage(9, LAYOUT, "unbalanced") == (1, 1, 5, 1, 1)
    drawn = {layers_per_stage(12, LAYOUT, "random", seed) for seed in range(20)}
    assert len(drawn) > 1 and all(sorted(counts) == [2, 2, 2, 3, 3] for counts in drawn)


@given(layout=st.lists(st.integers(1, 3), min_size=1, max_size=4).map(tuple))
@settings(max_examples=10)
def test_a_descendant_with_the_auxiliarys_layout_computes_its_logits_exactly(layout: tuple[int, ...]) -> None:
    auxiliary, learngene = learngene_of(layout)
    method = create_method("sws", layout=layout)
    descendant = method.expand(learngene, NANO.replace(depth=sum(layout))).eval()
    images = torch.randn(3, *NANO.image)
    assert torch.equal(auxiliary(images), descendant(images))


@pytest.mark.parametrize(
    ("name", "block", "without_head", "with_head"),
    [
        ("ti", 444_864, 2_409_984, 2_602_984),
        ("s", 1_774_464, 9_243_648, 9_628_648),
        ("b", 7_087_872, 36_182_016, 36_951_016),
    ],
)
def test_stored_sizes(name: str, block: int, without_head: int, with_head: int) -> None:
    method = create_method("sws")
    with torch.device("meta"):
        auxiliary = StageSharedVisionTransformer(preset(name), LAYOUT)
    assert auxiliary.stage_of_layer == stage_of_layer(16, LAYOUT, "proportional")
    assert sum(parameter.numel() for parameter in auxiliary.blocks[0].parameters()) == block
    learngene = Learngene(method.name, {}, auxiliary.spec, auxiliary.state_dict())
    assert learngene.parameters() == with_head
    assert learngene.parameters(head=False) == without_head
    ten = sum(costs.parameters(preset(name, depth=depth)) for depth in range(6, 16))
    if name == "b":  # the paper's "20x fewer stored parameters", counted without heads
        heads = 10 * (768 + 1) * 1000
        assert round((ten - heads) / without_head, 1) == 20.8


def test_a_shared_blocks_gradient_is_the_sum_over_its_applications() -> None:
    auxiliary, learngene = learngene_of()
    untied = create_method("sws", layout=LAYOUT).expand(learngene, NANO)
    images, labels = torch.randn(4, *NANO.image), torch.tensor([0, 1, 2, 3])
    for model in (auxiliary, untied):
        torch.nn.functional.cross_entropy(model.train()(images), labels).backward()
    for stage in range(len(LAYOUT)):
        layers = [layer for layer, of in enumerate(auxiliary.stage_of_layer) if of == stage]
        for name, parameter in auxiliary.blocks[stage].named_parameters():
            total = sum(untied.blocks[layer].get_parameter(name).grad for layer in layers)
            torch.testing.assert_close(parameter.grad, total, rtol=1e-4, atol=1e-6)


def test_drop_path_rises_over_applications_and_is_off_in_evaluation() -> None:
    auxiliary = create_method("sws").auxiliary(NANO, drop_path=0.3)
    assert auxiliary.drop_path_rates == pytest.approx([0.3 * layer / 15 for layer in range(16)])
    images = torch.randn(2, *NANO.image)
    assert not torch.equal(auxiliary.train()(images), auxiliary(images))
    assert torch.equal(auxiliary.eval()(images), auxiliary(images))


def test_activation_checkpointing_changes_no_gradient() -> None:
    auxiliary, _ = learngene_of()
    images = torch.randn(2, *NANO.image)
    gradients = []
    for enabled in (False, True):
        auxiliary.train().set_grad_checkpointing(enabled)
        auxiliary.zero_grad()
        auxiliary(images).square().sum().backward()
        gradients.append([parameter.grad.clone() for parameter in auxiliary.parameters()])
    for plain, checkpointed in zip(*gradients, strict=True):
        assert torch.equal(plain, checkpointed)


def test_another_image_size_or_label_set() -> None:
    _, learngene = learngene_of()
    spec = NANO.replace(image=16, classes=7, depth=5)
    model = create_method("sws").expand(learngene, spec)
    assert model(torch.randn(1, 3, 16, 16)).shape == (1, 7)
    assert torch.equal(model.blocks[0].mlp.fc1.weight, learngene.tensors["blocks.0.mlp.fc1.weight"])


def test_descendants_are_untied() -> None:
    _, learngene = learngene_of()
    model = create_method("sws").expand(learngene, NANO)
    assert len({parameter.data_ptr() for parameter in model.parameters()}) == len(list(model.parameters()))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("sws:stages=3-x", "expected numbers such as 3-3-4-3-3"),
        ("sws:stages=0-3", "greater than or equal to 1"),
        ("sws:colour=red", "is not an option"),
        ("sws:expansion=sideways", "expansion"),
        ("swiss", "unknown method 'swiss'"),
    ],
)
def test_a_bad_method_text_is_refused(text: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        create_method(text)


def test_what_sws_cannot_do_it_says() -> None:
    _, learngene = learngene_of()
    with pytest.raises(UserError, match="SWS cannot change the width: the learngene has width 48"):
        create_method("sws").expand(learngene, NANO.replace(width=96))
    with pytest.raises(UserError, match="layout 1-2 has 3 layers in 2 stages"):
        create_method("sws:layout=1-2").expand(learngene, NANO.replace(depth=3))
    with pytest.raises(UserError, match="expands a learngene"):
        create_method("sws").expand(None, NANO)
    with pytest.raises(UserError, match="no auxiliary model"):
        create_method("scratch").auxiliary(NANO)

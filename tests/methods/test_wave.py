"""WAVE: its closed form of trained models, what a target inherits, what phase 2 trains."""

import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.optim import param_groups_weight_decay

from ray_learngene.errors import UserError
from ray_learngene.methods.base import Learngene, Method
from ray_learngene.methods.generated import GeneratedVisionTransformer, gene_of
from ray_learngene.methods.kronecker import MATRICES, kron_sum
from ray_learngene.methods.plain_templates import PARTS
from ray_learngene.methods.registry import create_method
from ray_learngene.models import costs
from ray_learngene.models.build import build
from ray_learngene.models.layout import chains
from ray_learngene.models.specs import Spec, preset
from tests.methods.trained import NANO, noisy
from tests.models.sizes import small

WIDTH = "wave:template=16"


def learngene_of(text: str, spec: Spec = NANO) -> tuple[Method, GeneratedVisionTransformer, Learngene]:
    torch.manual_seed(0)
    method = create_method(text)
    auxiliary = noisy(method.auxiliary(spec), 0.02)
    return method, auxiliary, method.extract(auxiliary)


def trained(spec: Spec = NANO, seed: int = 1) -> torch.nn.Module:
    """Return a plain model none of whose parameters is as initialised."""
    return noisy(build(spec, seed=seed), 0.05, seed)


def images(spec: Spec = NANO) -> torch.Tensor:
    return torch.randn(3, *spec.image, generator=torch.Generator().manual_seed(0))


# Kronecker sums.


def test_other_methods_are_special_cases_of_full_size_templates() -> None:
    depth, templates = 6, torch.randn(3, 5, 4)
    one = torch.ones(depth, 1, 1, 1)
    assert all(torch.equal(matrix, templates[0]) for matrix in kron_sum(one, templates[:1]))  # Share-Init
    kept = torch.eye(3)[..., None, None]
    assert torch.equal(kron_sum(kept, templates), templates)  # Heur-LG, Auto-LG: a template for each kept layer
    stages = torch.tensor([0, 0, 1, 1, 2, 2])
    by_stage = torch.nn.functional.one_hot(stages, 3).float()[..., None, None]
    assert torch.equal(kron_sum(by_stage, templates), templates[stages])  # SWS
    share = torch.arange(depth) / depth
    line = torch.stack([torch.ones(depth), share], 1)[..., None, None]
    torch.testing.assert_close(  # TLEG
        kron_sum(line, templates[:2]), templates[0] + share[:, None, None] * templates[1]
    )


def test_blocks_keep_query_key_value_and_heads_contiguous() -> None:
    """A block of qkv belongs to one of q, k and v, and to whole heads or to one."""
    for side, head in ((16, 16), (8, 16), (48, 16)):
        width = 48
        grid = 3 * width // side
        for block in range(grid):
            scalers = torch.zeros(1, 1, grid, width // side)
            scalers[0, 0, block] = 1
            rows = kron_sum(scalers, torch.ones(1, side, side))[0].any(1).nonzero().flatten().tolist()
            assert rows == list(range(rows[0], rows[0] + side))
            assert rows[0] // width == rows[-1] // width
            heads = {row // head for row in rows}
            assert len(heads) == max(1, side // head)


# The closed form.


@pytest.mark.parametrize("text", ["wave:counts=48", "wave:counts=200:template=16:vectors=16"])
def test_the_closed_form_of_a_trained_model_is_exact_with_enough_templates(text: str) -> None:
    model = trained()
    method = create_method(text)
    learngene = method.extract(model)
    made = method.expand(learngene, NANO).eval()
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(made.state_dict()[name], tensor, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(made(images()), model(images()), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("text", ["wave", "wave:counts=48", WIDTH, "wave:template=16:counts=300:vectors=40"])
def test_distillation_can_start_from_the_closed_form(text: str) -> None:
    """Same names, same shapes, and every template of use: none is 0."""
    method = create_method(text)
    learngene = method.extract(trained())
    auxiliary = method.auxiliary(NANO)
    genes = auxiliary.genes()
    assert {name: gene.shape for name, gene in genes.items()} == {
        name: tensor.shape for name, tensor in learngene.tensors.items()
    }
    auxiliary.load_state_dict({name.replace(".", "__"): tensor for name, tensor in learngene.tensors.items()})
    assert torch.equal(auxiliary.eval()(images()), method.expand(learngene, NANO).eval()(images()))
    assert all(tensor.any() for name, tensor in learngene.tensors.items() if name.startswith("templates."))


# The auxiliary model and its learngene.


@pytest.mark.parametrize(("name", "millions"), [("ti", 1.29), ("s", 4.36), ("b", 15.79)])
def test_stored_sizes(name: str, millions: float) -> None:
    spec = preset(name, depth=12)
    with torch.device("meta"):
        genes = create_method("wave").initial(spec)
    learngene = Learngene("wave", {}, spec, genes)
    assert round(learngene.parameters() / 1e6, 2) == millions
    templates = sum(gene.numel() for gene_name, gene in genes.items() if gene_name.startswith("templates."))
    assert templates == 24 * spec.width**2
    assert sum(gene.numel() for gene_name, gene in genes.items() if gene_name.startswith("scalers.")) == 12 * 84
    # "5x less storage": 4.4, 5.1, 5.5 for the three sizes
    assert costs.parameters(spec) / learngene.parameters() == pytest.approx(
        {"ti": 4.4, "s": 5.1, "b": 5.5}[name], abs=0.05
    )


@pytest.mark.parametrize("text", ["wave", WIDTH, "wave:counts=1", "wave:template=16-48-8-24"])
def test_an_untrained_model_is_as_a_plain_one(text: str) -> None:
    torch.manual_seed(0)
    method = create_method(text)
    state = method.extract(method.auxiliary(NANO)).tensors
    model = method.expand(Learngene("wave", method.model_dump(mode="json"), NANO, state), NANO)
    for name, tensor in model.state_dict().items():
        if "norm" in name or ("blocks" in name and name.endswith("bias")):
            assert torch.equal(tensor, torch.full_like(tensor, float("norm" in name and name.endswith("weight"))))
        elif "blocks" in name:
            assert 0.017 < float(tensor.std()) < 0.023, name


@pytest.mark.parametrize("text", ["wave", WIDTH, "wave:template=48-16-24-8:counts=3-1-2-5:vectors=2:embeddings=1"])
def test_a_descendant_of_the_auxiliarys_size_computes_its_logits_exactly(text: str) -> None:
    method, auxiliary, learngene = learngene_of(text)
    model = method.expand(learngene, NANO).eval()
    assert torch.equal(auxiliary(images()), model(images()))
    assert torch.equal(auxiliary(images()), auxiliary.materialise().eval()(images()))
    assert len({parameter.data_ptr() for parameter in model.parameters()}) == len(list(model.parameters()))


def test_names_that_are_not_decayed_are_all_but_templates_of_matrices_and_the_head() -> None:
    _, auxiliary, _ = learngene_of(WIDTH)
    decayed = {name for name, _ in auxiliary.named_parameters()} - auxiliary.no_weight_decay()
    assert decayed == {f"templates__{name}" for name in (*MATRICES, "patch_embed")} | {"head__weight"}


@pytest.mark.parametrize("name", ["deit3_small_patch16_224", "swinv2_tiny_window8_256", "convnextv2_atto"])
def test_a_gene_of_all_layers_is_decayed_where_timm_decays_the_parameter(name: str) -> None:
    def decayed(module: torch.nn.Module) -> set[str]:
        named = getattr(module, "no_weight_decay", set)()
        own = {id(each) for each in param_groups_weight_decay(module, 0.1, no_weight_decay_list=named)[1]["params"]}
        return {name for name, each in module.named_parameters() if id(each) in own}

    spec = small(name)
    model, auxiliary = build(spec), create_method("wave").auxiliary(spec)
    firsts = {blocks[0]: chain for chain, blocks in chains(spec).items()}
    of_layers = {name.replace(first, firsts[first]) for name in decayed(model) for first in firsts if first in name}
    genes = {gene_of(name) for name in decayed(auxiliary)} - {name for name, _ in model.named_parameters()}
    assert {gene.partition(".")[2] for gene in genes} == of_layers


# Depth and width.


@pytest.mark.parametrize("times", [2, 3])
@pytest.mark.parametrize("text", [WIDTH, "wave:template=8", "wave:template=16-48-8-48"])
def test_a_multiple_of_the_width_computes_what_the_learngene_does(text: str, times: int) -> None:
    """Heads and channels are repeated and inputs shared: with the head widened alike, the function is the same."""
    _, auxiliary, learngene = learngene_of(text)
    spec = NANO.replace(width=48 * times, heads=3 * times)
    model = create_method("wave:head=tiled").expand(learngene, spec).eval()
    torch.testing.assert_close(model(images()), auxiliary(images()), rtol=1e-4, atol=1e-5)


@given(depth=st.integers(1, 9), heads=st.integers(1, 5), rule=st.sampled_from(["linear", "nearest", "random"]))
@settings(max_examples=8)
def test_any_depth_and_width(depth: int, heads: int, rule: str) -> None:
    _, _, learngene = learngene_of(WIDTH, NANO.replace(depth=2))
    spec = NANO.replace(depth=depth, width=16 * heads, heads=heads)
    model = create_method("wave", scalers=rule).expand(learngene, spec)
    assert model(images()).isfinite().all()
    head = model.head.weight
    inherited = torch.equal(head, learngene.tensors["head.weight"]) if heads == 3 else False
    assert inherited or torch.equal(head, build(spec, seed=0).head.weight)


def test_what_the_scalers_rules_give() -> None:
    _, _, learngene = learngene_of("wave")
    spec = NANO.replace(depth=7)

    def weights(rule: str, seed: int = 0) -> list[torch.Tensor]:
        state = create_method("wave", scalers=rule).expand(learngene, spec, seed=seed).state_dict()
        return [state[f"blocks.{layer}.mlp.fc1.weight"] for layer in range(7)]

    own = [
        create_method("wave").expand(learngene, NANO).state_dict()[f"blocks.{layer}.mlp.fc1.weight"]
        for layer in range(4)
    ]
    torch.testing.assert_close(weights("linear")[1], (own[0] + own[1]) / 2)
    assert torch.equal(weights("linear")[0], own[0]) and torch.equal(weights("linear")[6], own[3])
    assert all(any(torch.equal(weight, layer) for layer in own) for weight in weights("nearest"))
    torch.testing.assert_close(weights("identical")[3], sum(own) / 4)
    assert torch.equal(weights("random", 1)[2], weights("random", 1)[2])
    assert not torch.equal(weights("random", 1)[2], weights("random", 2)[2])


def test_expanding_leaves_the_global_generator_alone() -> None:
    _, _, learngene = learngene_of("wave")
    before = torch.get_rng_state()
    create_method("wave:scalers=random").expand(learngene, NANO.replace(classes=7), seed=3)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("text", ["wave", WIDTH])
def test_another_image_size_or_label_set(text: str) -> None:
    method, _, learngene = learngene_of(text)
    spec = NANO.replace(image=16, classes=7, depth=5)
    model = method.expand(learngene, spec, seed=4)
    assert model(images(spec)).shape == (3, 7)
    assert torch.equal(model.head.weight, build(spec, seed=4).head.weight)
    headless = method.expand(learngene.without_head(), NANO, seed=4)
    assert torch.equal(headless.head.weight, build(NANO, seed=4).head.weight)


# Phase 2.


@pytest.mark.parametrize(
    ("text", "spec"), [("wave", NANO.replace(depth=6)), (WIDTH, NANO.replace(depth=3, width=64, heads=4, image=16))]
)
def test_phase_2_fits_scalers_with_the_templates_frozen(text: str, spec: Spec) -> None:
    method, _, learngene = learngene_of(text)
    adapter = create_method(f"{text}:fit=7:fit_lr=0.1").adapter(learngene, spec, seed=5)
    assert (adapter.fit_steps, adapter.fit_lr) == (7, 0.1)
    expanded = method.expand(learngene, spec, seed=5).eval()
    assert torch.equal(adapter.eval()(images(spec)), expanded(images(spec)))
    labels = torch.tensor([0, 1, 2])
    optimizer = torch.optim.SGD(adapter.parameters(), lr=0.1)
    torch.nn.functional.cross_entropy(adapter.train()(images(spec)), labels).backward()
    optimizer.step()
    for name, tensor in adapter.genes().items():
        frozen = name.startswith("templates.") or name in ("patch_embed.proj.weight", "pos_embed")
        assert (tensor.grad is None) == frozen and tensor.requires_grad != frozen, name
        if frozen:
            assert torch.equal(tensor, learngene.tensors[name])
    plain = adapter.eval().materialise().eval()
    assert torch.equal(adapter(images(spec)), plain(images(spec)))
    assert not torch.equal(plain(images(spec)), expanded(images(spec)))


def test_phase_2_trains_few_parameters_and_can_be_left_out() -> None:
    method, _, learngene = learngene_of("wave")
    adapter = method.adapter(learngene, NANO)
    trained_here = sum(parameter.numel() for parameter in adapter.parameters())
    assert trained_here < costs.parameters(NANO) / 20
    assert create_method("wave:fit=0").adapter(learngene, NANO) is None
    assert pickle.loads(pickle.dumps(adapter)).fit_steps == 200


# What it cannot do.


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("wave:counts=6-2", "one number, or four for qkv, proj, fc1, fc2, got 2"),
        ("wave:counts=6-x-8-8", "expected numbers such as 3-3-4-3-3"),
        ("wave:counts=0", "greater than or equal to 1"),
        ("wave:scalers=cubic", "scalers"),
    ],
)
def test_a_bad_option_is_refused(text: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        create_method(text)


def test_a_template_that_does_not_divide_the_width_is_refused() -> None:
    with pytest.raises(UserError, match="templates of side 20 do not divide the 144×48 qkv matrices"):
        create_method("wave:template=20").auxiliary(NANO)
    with pytest.raises(UserError, match="templates of side 24 cut through heads of size 16"):
        create_method("wave:template=24").extract(build(NANO))
    with pytest.raises(UserError, match="templates of side 48 do not divide the 120×48 fc1 matrices"):
        create_method("wave").auxiliary(NANO.replace(mlp_ratio=2.5))
    _, _, learngene = learngene_of("wave:template=48")
    with pytest.raises(UserError, match="templates of side 48 do not divide the 192×64 qkv matrices"):
        create_method("wave").expand(learngene, NANO.replace(width=64, heads=4))


def test_what_wave_cannot_do_it_says() -> None:
    _, _, learngene = learngene_of("wave")
    with pytest.raises(UserError, match="made without template=SIDE.* cannot change the width: .* has width 48"):
        create_method("wave").expand(learngene, NANO.replace(width=96, heads=6))
    with pytest.raises(UserError, match="cannot change the patch"):
        create_method("wave").expand(learngene, NANO.replace(patch=4))
    with pytest.raises(UserError, match="made with wave:counts=.6, 2, 8, 8., not .1."):
        create_method("wave:counts=1").expand(learngene, NANO)
    with pytest.raises(UserError, match="expands a learngene"):
        create_method("wave").adapter(None, NANO)
    _, _, learngene = learngene_of(WIDTH)
    with pytest.raises(UserError, match="wave keeps the head size: the learngene's heads are 16 wide"):
        create_method("wave").expand(learngene, NANO.replace(width=64, heads=2))


def test_every_parameter_of_a_model_is_a_part_or_the_head() -> None:
    names = {name for name in build(NANO.replace(depth=1)).state_dict() if not name.startswith("head.")}
    assert {("blocks.0." if part.layered else "") + part.parameter for part in PARTS.values()} == names

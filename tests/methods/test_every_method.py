"""What holds for any registered method with its default options: a new method is tested here without a line."""

from __future__ import annotations

import copy
import json
import pickle
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from ray_learngene.config import DistillConfig
from ray_learngene.config.methods import METHOD_OPTIONS
from ray_learngene.data.open import open_image_sets
from ray_learngene.data.pipeline import ImagePipeline
from ray_learngene.distillation.distill import _start_from
from ray_learngene.errors import UserError
from ray_learngene.methods.base import Learngene, Method
from ray_learngene.methods.elastic import draw_step
from ray_learngene.methods.generated import GeneratedVisionTransformer, GeneratingMethod, Genes, State
from ray_learngene.methods.registry import METHODS, create_method
from ray_learngene.models import costs
from ray_learngene.models.build import build, timm_arguments
from ray_learngene.models.preprocessing import Preprocessing
from ray_learngene.models.specs import Spec, spec_for
from ray_learngene.models.timm_folder import export_timm
from ray_learngene.store.learngenes import StoredLearngene, in_order_of
from ray_learngene.store.store import Store
from ray_learngene.training.batches import Batches
from ray_learngene.training.clock import Clock
from ray_learngene.training.fitting import Fitting
from ray_learngene.training.lockstep import train
from ray_learngene.training.objectives import LabelObjective
from ray_learngene.training.world import World
from tests.methods.trained import assert_untied, images_of

SPEC = Spec(width=32, depth=4, heads=2, image=8, patch=4, classes=5)
ALWAYS = {"the same": {}, "another image size": {"image": 16}, "other classes": {"classes": 3}}
SIZES: dict[str, dict[str, Any]] = {
    **ALWAYS,
    "shallower": {"depth": 2},
    "deeper": {"depth": 6},
    "narrower": {"width": 16, "heads": 1},
    "wider": {"width": 64, "heads": 4},
    "larger": {"depth": 6, "width": 64, "heads": 4},
    "other heads": {"heads": 4},
    "other patches": {"patch": 2},
    "a narrower MLP": {"mlp_ratio": 2.0},
}
PREPROCESSING = Preprocessing(image_size=8, mean=(0.5,) * 3, std=(0.5,) * 3, crop_pct=1.0, interpolation="bicubic")
LABELS = tuple("abcde")

WITH_LEARNGENE = [name for name, method in METHODS.items() if method.needs_learngene]
WITHOUT_LEARNGENE = [name for name, method in METHODS.items() if not method.needs_learngene]
GENERATING = [name for name, method in METHODS.items() if issubclass(method, GeneratingMethod)]
FITTED = [name for name, method in METHODS.items() if method.adapter is not Method.adapter]


def test_the_names_and_options_known_without_torch_are_those_of_the_classes() -> None:
    assert {name: tuple(method.model_fields) for name, method in METHODS.items()} == METHOD_OPTIONS


@dataclass(frozen=True)
class Made:
    """A method with the auxiliary model it distils and the learngene of it, read from a store."""

    method: Method
    auxiliary: nn.Module
    learngene: Learngene | None


@pytest.fixture(scope="module")
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """As if trained: every parameter of the auxiliary model is noise, so that no bias is 0 and no gain 1."""
    method = create_method(request.param)
    if not method.needs_learngene:
        return Made(method, nn.Identity(), None)
    auxiliary = fresh_auxiliary(method)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in auxiliary.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    extracted = method.extract(auxiliary).describe(labels=LABELS, preprocessing=PREPROCESSING.model_dump(mode="json"))
    folder = tmp_path_factory.mktemp("learngene")
    extracted.save(folder / "files")
    store = Store(str(folder / "store"))
    store.publish("learngene", method.name, folder / "files", {})
    learngene = StoredLearngene.load(store, method.name).learngene
    for read in (learngene, Learngene.load(folder / "files")):
        assert read.description() == extracted.description()
        assert read.tensors.keys() == extracted.tensors.keys()
        assert all(torch.equal(tensor, extracted.tensors[name]) for name, tensor in read.tensors.items())
    return Made(method, auxiliary, learngene)


def fresh_auxiliary(method: Method, spec: Spec = SPEC) -> nn.Module:
    torch.manual_seed(0)
    return method.auxiliary(spec).eval()


def expand(made: Made, spec: Spec, seed: int = 3) -> VisionTransformer:
    """Return the expansion, which leaves torch's global generator alone, even where it is refused."""
    before = torch.get_rng_state()
    try:
        return made.method.expand(made.learngene, spec, seed=seed)
    finally:
        assert torch.equal(before, torch.get_rng_state())


def assert_equal_states(one: nn.Module, two: nn.Module) -> None:
    first, second = one.state_dict(), two.state_dict()
    assert first.keys() == second.keys()
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def assert_not_in_its_memory(module: nn.Module, learngene: Learngene) -> None:
    """Nothing that is trained lies in memory of the learngene, which many processes share."""
    stored = {tensor.untyped_storage().data_ptr() for tensor in learngene.tensors.values()}
    trained = (parameter for parameter in module.parameters() if parameter.requires_grad)
    assert stored.isdisjoint(parameter.untyped_storage().data_ptr() for parameter in trained)


def assert_one_line(error: UserError) -> None:
    assert str(error) and "\n" not in str(error)


def assert_says_what_it_cannot(error: UserError, method: Method, spec: Spec) -> None:
    """One line with the method's name or a field's, what the learngene has and what was asked for."""
    assert_one_line(error)
    text = str(error).lower().replace("-", " ")
    assert any(word in text for word in (method.name.replace("-", " "), *Spec.model_fields))
    numbers = re.findall(r"\d+(?:\.\d+)?", text)
    different = [(have, want) for have, want in zip(facts(SPEC), facts(spec), strict=True) if have != want]
    assert any(str(have) in numbers and str(want) in numbers for have, want in different), text


def facts(spec: Spec) -> list[float]:
    return [*spec.model_dump().values(), spec.hidden, spec.width // spec.heads]


# Expansion.


@pytest.mark.parametrize("made", WITH_LEARNGENE, indirect=True)
def test_an_entry_point_that_makes_the_plain_model_is_no_other_architecture(made: Made) -> None:
    arguments = {"img_size": 8, "patch_size": 4, "embed_dim": 32, "depth": 4, "num_heads": 2}
    spec = spec_for("deit_small_patch16_224", classes=5, class_token=False, global_pool="avg", **arguments)
    assert_equal_states(expand(made, spec), expand(made, SPEC))
    with pytest.raises(UserError, match="architecture"):
        expand(made, spec_for("deit_small_patch16_224", classes=5, **arguments))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("made", METHODS, indirect=True)
def test_a_size_becomes_a_plain_timm_model_or_is_refused_in_one_line(made: Made, size: str, tmp_path: Path) -> None:
    spec = SPEC.replace(**SIZES[size])
    try:
        model = expand(made, spec).eval()
    except UserError as error:
        assert size not in ALWAYS
        assert_says_what_it_cannot(error, made.method, spec)
        return
    assert type(model) is VisionTransformer
    with torch.device("meta"):
        plain = build(spec).state_dict()
    assert {name: x.shape for name, x in model.state_dict().items()} == {name: x.shape for name, x in plain.items()}
    assert all(x.dtype == torch.float32 and x.isfinite().all() for x in model.state_dict().values())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert_untied(model)
    if made.learngene:
        assert_not_in_its_memory(model, made.learngene)
    assert_equal_states(model, expand(made, spec))
    export_timm(
        model,
        tmp_path,
        labels=LABELS[: spec.classes],
        preprocessing=PREPROCESSING.model_copy(update={"image_size": spec.image}),
        model_args=timm_arguments(spec),
    )
    loaded = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    assert torch.equal(model(images_of(spec)), loaded(images_of(spec)))


@pytest.mark.parametrize("made", WITH_LEARNGENE, indirect=True)
@pytest.mark.parametrize("classes", [SPEC.classes, 3])
def test_a_head_that_is_not_inherited_is_fresh_and_decided_by_the_seed(made: Made, classes: int) -> None:
    assert made.learngene is not None
    learngene = made.learngene.without_head() if classes == SPEC.classes else made.learngene
    spec = SPEC.replace(classes=classes)
    for seed in (1, 2):
        model = made.method.expand(learngene, spec, seed=seed)
        assert_equal_states(model.head, build(spec, seed=seed).head)


@pytest.mark.parametrize("made", WITH_LEARNGENE, indirect=True)
def test_a_head_is_inherited_by_the_same_names_in_another_order(made: Made) -> None:
    assert made.learngene is not None
    reversed_ = in_order_of(made.learngene, LABELS[::-1])
    assert reversed_ and reversed_.labels == LABELS[::-1]
    assert in_order_of(made.learngene, LABELS) is made.learngene
    one, other = (made.method.expand(learngene, SPEC, seed=3) for learngene in (made.learngene, reversed_))
    kept = made.learngene.parameters() > made.learngene.parameters(head=False)  # weight selection keeps no head
    expected = one(images_of(SPEC)).flip(1) if kept else one(images_of(SPEC))
    torch.testing.assert_close(expected, other(images_of(SPEC)), rtol=0, atol=1e-6)
    assert in_order_of(made.learngene, ("other", *LABELS[1:])) is None


@pytest.mark.parametrize("made", WITH_LEARNGENE, indirect=True)
def test_a_learngene_is_described_in_json_and_expands_with_the_options_it_was_made_with(made: Made) -> None:
    assert made.learngene is not None
    description = made.learngene.description()
    assert json.loads(json.dumps(description)) == description
    assert description["method"] == made.method.name
    assert description["spec"] == SPEC.model_dump()
    assert description["parameters"] == sum(tensor.numel() for tensor in made.learngene.tensors.values())
    given = create_method(made.method.name, **made.learngene.options)  # the very options may be given again
    assert_equal_states(given.expand(made.learngene, SPEC, seed=3), expand(made, SPEC))
    with pytest.raises(UserError, match="expands a learngene") as refusal:
        made.method.expand(None, SPEC)
    assert_one_line(refusal.value)


@pytest.mark.parametrize("name", WITHOUT_LEARNGENE)
def test_a_method_without_a_learngene_has_nothing_to_distil(name: str) -> None:
    method = create_method(name)
    with pytest.raises(UserError, match=f"{name!r} has no auxiliary model") as refusal:
        method.auxiliary(SPEC)
    assert_one_line(refusal.value)
    with pytest.raises(UserError, match=f"{name!r} has no auxiliary model") as refusal:
        method.extract(build(SPEC))
    assert_one_line(refusal.value)
    assert method.adapter(None, SPEC) is None


@pytest.mark.parametrize("made", WITH_LEARNGENE, indirect=True)
def test_an_option_that_the_learngene_was_not_made_with_is_refused(made: Made) -> None:
    assert made.learngene is not None
    for option in made.learngene.options.keys() - made.method.expansion_options:
        otherwise = Learngene(
            made.method.name, {**made.learngene.options, option: "other"}, SPEC, made.learngene.tensors
        )
        given = create_method(made.method.name, **{option: made.learngene.options[option]})
        with pytest.raises(
            UserError, match=f"the learngene was made with {made.method.name}:{option}=other"
        ) as refusal:
            given.expand(otherwise, SPEC)
        assert_one_line(refusal.value)


# Auxiliary models.


@pytest.mark.parametrize("made", WITH_LEARNGENE, indirect=True)
def test_a_learngene_is_taken_only_from_what_the_method_knows(made: Made) -> None:
    with pytest.raises(UserError) as refusal:
        made.method.extract(nn.Linear(2, 2))
    assert_one_line(refusal.value)


@pytest.mark.parametrize("made", GENERATING, indirect=True)
def test_a_generated_auxiliary_computes_what_its_expansion_does(made: Made) -> None:
    assert isinstance(made.auxiliary, GeneratedVisionTransformer)
    logits = made.auxiliary(images_of(SPEC))
    assert torch.equal(logits, expand(made, SPEC).eval()(images_of(SPEC)))
    assert torch.equal(logits, made.auxiliary.materialise().eval()(images_of(SPEC)))


@pytest.mark.parametrize("made", [*GENERATING, "ligo"], indirect=True)
def test_autocast_does_not_round_what_is_generated(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    model: Any = made.auxiliary
    if not isinstance(model, GeneratedVisionTransformer):
        model = made.method.adapter(made.learngene, SPEC.replace(depth=6, width=64, heads=4))
    generate, states = model.generate, []

    def recorded(genes: Genes, spec: Spec) -> State:
        states.append(generate(genes, spec))
        return states[-1]

    expected = generate(model.genes(), model.spec)
    monkeypatch.setattr(model, "generate", recorded)
    with torch.autocast("cpu", torch.bfloat16):
        model(images_of(SPEC))
    for name, tensor in states[-1].items():
        assert torch.equal(tensor, expected[name]), name


@pytest.mark.parametrize("made", WITH_LEARNGENE, indirect=True)
def test_a_training_step_reaches_every_parameter(made: Made) -> None:
    auxiliary = copy.deepcopy(made.auxiliary).train()
    draw_step(auxiliary, 0, 0, 8)
    images = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    LabelObjective()(auxiliary, images, torch.arange(8) % SPEC.classes)["loss"].backward()
    for name, parameter in auxiliary.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), name


@pytest.mark.parametrize("made", WITH_LEARNGENE, indirect=True)
def test_an_auxiliary_survives_pickling_and_copying(made: Made) -> None:
    logits = made.auxiliary(images_of(SPEC))
    for again in (pickle.loads(pickle.dumps(made.auxiliary)), copy.deepcopy(made.auxiliary)):
        assert again.spec == SPEC
        assert torch.equal(again(images_of(SPEC)), logits)


@pytest.mark.parametrize("made", WITH_LEARNGENE, indirect=True)
@pytest.mark.parametrize("classes", [SPEC.classes, 3])
def test_a_distillation_starts_from_a_learngene_that_holds_all_of_its_auxiliary(made: Made, classes: int) -> None:
    assert made.learngene is not None
    config = DistillConfig(
        data="digits", ancestry="none", preset="nano", name="n", method=made.method.name, start="before"
    )
    module = fresh_auxiliary(made.method, SPEC.replace(classes=classes))
    drawn = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    trained = made.auxiliary.state_dict()
    kept = {name.replace("__", ".") for name in made.learngene.tensors}
    if any(name.replace("__", ".") not in kept for name in drawn if not name.startswith("head")):
        with pytest.raises(UserError, match="does not fit") as refusal:
            _start_from(module, made.method, made.learngene, config)
        assert_one_line(refusal.value)
        return
    _start_from(module, made.method, made.learngene, config)
    for name, tensor in module.state_dict().items():
        inherited = name.replace("__", ".") in kept and tensor.shape == trained[name].shape
        assert torch.equal(tensor, (trained if inherited else drawn)[name]), name
        assert inherited or name.startswith("head")


# Adapters.


@pytest.mark.parametrize("made", FITTED, indirect=True)
def test_an_adapter_fits_few_parameters_and_becomes_a_plain_model(made: Made, tmp_path: Path) -> None:
    config = DistillConfig(
        data="digits", ancestry="none", preset="nano", name="n", store=str(tmp_path), hflip=0, batch_size=32
    )
    sets = open_image_sets(config)
    spec = SPEC.replace(depth=6, classes=len(sets.train.classes))
    before = torch.get_rng_state()
    adapter, again = (made.method.adapter(made.learngene, spec, seed=3) for _ in range(2))
    assert torch.equal(before, torch.get_rng_state())
    assert isinstance(adapter, nn.Module) and isinstance(again, nn.Module)
    assert_equal_states(adapter, again)
    # unfitted it is the expansion
    assert_equal_states(adapter.materialise(), expand(made, spec))
    trained = sum(parameter.numel() for parameter in adapter.parameters() if parameter.requires_grad)
    assert 0 < trained < costs.parameters(spec) / 10
    assert made.learngene is not None
    assert_not_in_its_memory(adapter, made.learngene)

    assert adapter.fit_steps > 2
    adapter.fit_steps = 2
    cpu, images = torch.device("cpu"), ImagePipeline(sets.train, sets.val, PREPROCESSING, config)
    fitting = Fitting(adapter, images, config, clock=Clock(cpu), autocast=None)
    train([fitting], Batches(images, config, World(cpu)))
    model, cost = fitting.result()
    assert type(model) is VisionTransformer
    assert (cost.steps, cost.images) == (2, 64) and cost.flops > 0
    assert_untied(model)
    assert torch.equal(model.eval()(images_of(spec)), adapter.eval()(images_of(spec)))
    assert not torch.equal(model(images_of(spec)), again.eval()(images_of(spec)))


def test_an_option_that_came_later_is_kept_only_where_it_differs() -> None:
    """So learngenes keep their versions and descendants their names; both hash the options."""
    assert "corrections" not in create_method("any-size").options()
    assert create_method("any-size:corrections=0.1").options()["corrections"] == 0.1
    method = create_method("any-size")
    learngene = method.extract(fresh_auxiliary(method))
    assert create_method("any-size:corrections=0").as_made(learngene) == method
    with pytest.raises(UserError, match=r"was made with any-size:corrections=0, not 0.1: leave the option out"):
        create_method("any-size:corrections=0.1").as_made(learngene)

"""Methods on families: an expansion to the auxiliary's own size computes its logits."""

from __future__ import annotations

import pytest
import timm
import torch

from ray_learngene.errors import UserError
from ray_learngene.methods.elastic import draw_step
from ray_learngene.methods.registry import create_method
from ray_learngene.models.build import build, shapes_of, spec_of
from ray_learngene.models.layout import chains
from ray_learngene.models.specs import Spec, spec_for
from tests.methods.trained import noisy
from tests.models.sizes import small

ARCHITECTURES = (
    *("vit_small_patch14_reg4_dinov2", "vit_small_patch16_dinov3", "swin_tiny_patch4_window7_224", "convnextv2_atto"),
    *("beit_base_patch16_224", "vit_small_patch16_rope_mixed_224"),
)
GENERATING = ("sws", "any-size", "tleg", "share-init", "supernet", "early-exit", "layerdrop", "wave")
EXTRACTING = ("pretrained:truncate=true", "heur-lg:keep=last9", "auto-lg:keep=first9", "weight-selection")


def spec_of_method(architecture: str) -> Spec:
    spec = small(architecture)
    return spec.replace(depths=tuple(4 for _ in spec.depths)) if spec.depths else spec.replace(depth=4)


def images_of(spec: Spec) -> torch.Tensor:
    return torch.randn(2, *spec.image, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("text", GENERATING)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_an_expansion_to_the_auxiliarys_own_size_computes_its_logits(architecture: str, text: str) -> None:
    spec, method = spec_of_method(architecture), create_method(text)
    if text == "tleg" and "mixed" in architecture:
        with pytest.raises(UserError, match="values of every layer"):
            method.auxiliary(spec)
        return
    if text in ("layerdrop", "early-exit") and len(chains(spec)) > 1:
        with pytest.raises(UserError, match="has several: use supernet|early-exit needs a plain vision transformer"):
            method.auxiliary(spec)
        return
    torch.manual_seed(0)
    auxiliary = noisy(method.auxiliary(spec), 0.05, 1)
    learngene = method.extract(auxiliary)
    options = ":expansion=proportional" if text == "sws" else ""
    expanded = create_method(f"{text}{options}").expand(learngene, spec).eval()
    with torch.no_grad():
        assert torch.equal(expanded(images_of(spec)), auxiliary(images_of(spec)))
        for other in (spec.replace(depth=spec.depth - 1), spec.replace(classes=3)):
            assert bool(method.expand(learngene, other).eval()(images_of(other)).isfinite().all())
    auxiliary.train()
    draw_step(auxiliary, 0, 0, 8)
    logits = auxiliary(images_of(spec).repeat(4, 1, 1, 1))
    sum(each.sum() for each in (logits if isinstance(logits, tuple) else (logits,))).backward()
    assert all(parameter.grad is not None for parameter in auxiliary.parameters())


@pytest.mark.parametrize("text", EXTRACTING)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_trained_models_own_size_is_the_model(architecture: str, text: str) -> None:
    spec, method = spec_of_method(architecture), create_method(text)
    model = noisy(build(spec, seed=0), 0.05, 1)
    learngene = method.extract(model)
    expanded = method.expand(learngene, learngene.spec).eval()
    head = {name for name in shapes_of(spec) if name.startswith(("head.fc.", "head.weight", "head.bias"))}
    for name, tensor in expanded.state_dict().items():
        if text != "weight-selection" or name not in head:
            assert torch.equal(tensor, model.state_dict()[name]), name
    fewer = method.expand(learngene, spec.replace(depth=spec.depth // 2))
    assert sum(map(len, chains(spec_of(fewer)).values())) == spec.depth // 2


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_weight_selection_takes_half_of_every_width(architecture: str) -> None:
    spec = spec_of_method(architecture)
    method, model = create_method("weight-selection"), noisy(build(spec, seed=0), 0.05, 1)
    half = spec.replace(width=spec.width // 2, heads=max(1, spec.heads // 2))
    expanded = method.expand(method.extract(model), half).eval()
    assert bool(expanded(images_of(spec)).isfinite().all())
    values = {float(value) for tensor in model.state_dict().values() for value in tensor.flatten()}
    for name, tensor in expanded.state_dict().items():
        if not name.startswith("head"):
            assert {float(value) for value in tensor.flatten()} <= values, name


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_growth_and_the_closed_form_give_a_trained_models_own_size(architecture: str) -> None:
    spec = spec_of_method(architecture)
    model = noisy(build(spec, seed=0), 0.05, 1)
    ligo, wave = create_method("ligo"), create_method("wave:counts=64")
    learngene = ligo.extract(model)
    larger = spec.replace(width=2 * spec.width, heads=2 * spec.heads).replace(depth=spec.depth + 2, classes=3)
    growing = ligo.adapter(learngene, larger)
    assert growing is not None
    with torch.no_grad():
        expected = model(images_of(spec))
        assert torch.equal(ligo.expand(learngene, spec).eval()(images_of(spec)), expected)
        closed = wave.expand(wave.extract(model), spec).eval()
        torch.testing.assert_close(closed(images_of(spec)), expected, rtol=1e-4, atol=1e-4)
    growing(images_of(larger)).sum().backward()
    assert all(parameter.grad is not None for parameter in growing.parameters())


@pytest.mark.parametrize("architecture", ["vit_small_patch14_reg4_dinov2", "vit_small_patch16_dinov3"])
def test_templates_at_twice_the_width_compute_the_same(architecture: str) -> None:
    spec = spec_of_method(architecture)
    torch.manual_seed(0)
    method = create_method(f"wave:template={spec.width // spec.heads}")
    auxiliary = noisy(method.auxiliary(spec), 0.05, 1)
    twice = spec.replace(width=2 * spec.width, heads=2 * spec.heads)
    model = create_method("wave:head=tiled").expand(method.extract(auxiliary), twice).eval()
    with torch.no_grad():
        torch.testing.assert_close(model(images_of(spec)), auxiliary(images_of(spec)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("architecture", ["vit_small_patch14_reg4_dinov2", "swin_tiny_patch4_window7_224"])
def test_mimetic_attention_has_its_products(architecture: str) -> None:
    spec = small(architecture).replace(width=32, heads=2)
    model = create_method("mimetic:alpha1=0:alpha2=0").expand(None, spec)
    for name, block in model.named_modules():
        if name.endswith(".attn"):
            value, width = block.qkv.weight.chunk(3)[2], block.proj.weight.shape[0]
            torch.testing.assert_close(block.proj.weight @ value, -0.4 * torch.eye(width), rtol=0, atol=1e-5)
    assert bool(model.eval()(images_of(spec)).isfinite().all())


@pytest.mark.parametrize(
    ("text", "architecture", "message"),
    [
        ("mimetic", "vit_small_patch16_dinov3", "positions change queries"),
        ("mimetic", "convnext_atto", "no attention"),
        ("wave:template=8", "convnext_atto", "stages of several widths"),
        ("wave", "levit_128s", "running statistics"),
        ("ligo", "levit_128s", "running statistics"),
    ],
)
def test_what_a_method_cannot_do_is_said(text: str, architecture: str, message: str) -> None:
    spec = small(architecture) if architecture != "levit_128s" else spec_for(architecture, classes=5)
    method = create_method(text)
    with pytest.raises(UserError, match=message) as refusal:
        if text == "mimetic":
            method.expand(None, spec)
        elif text == "ligo":
            method.expand(method.extract(build(spec)), spec)
        else:
            method.auxiliary(spec)
    assert "\n" not in str(refusal.value)
    assert architecture in str(refusal.value)


def test_shared_blocks_do_not_mix_running_statistics() -> None:
    with pytest.raises(UserError, match="running statistics"):
        create_method("any-size").auxiliary(spec_for("levit_128s", classes=5))


@pytest.mark.parametrize("architecture", ["mobilenetv3_small_050", "poolformer_s12"])
def test_a_model_of_fixed_size_is_the_source_of_its_own_size(architecture: str) -> None:
    model = timm.create_model(architecture, num_classes=5).eval()
    method, images = create_method("pretrained"), torch.randn(2, 3, 64, 64)
    learngene = method.extract(model)
    own = Spec.model_validate_json(learngene.spec.model_dump_json()).replace(image=64)
    with torch.no_grad():
        assert torch.equal(method.expand(learngene, own).eval()(images), model(images))
    assert method.expand(learngene, own.replace(classes=3))(images).shape == (2, 3)


@pytest.mark.parametrize(
    ("text", "architecture", "message"),
    [
        ("weight-selection", "mobilenetv3_small_050", "timm takes no depth for it.*extract --method pretrained"),
        ("heur-lg", "regnetx_002", "no list of blocks of regnetx_002 follows the depth"),
        ("ligo", "poolformer_s12", "timm refuses this size"),
    ],
)
def test_other_methods_refuse_a_model_of_fixed_size(text: str, architecture: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        create_method(text).extract(timm.create_model(architecture, num_classes=5))

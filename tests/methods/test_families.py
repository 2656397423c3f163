"""Methods on families: an expansion to the auxiliary's own size computes its logits."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ray_learngene.errors import UserError
from ray_learngene.methods.elastic import draw_step
from ray_learngene.methods.registry import METHODS, create_method
from ray_learngene.models.layout import chains
from ray_learngene.models.specs import Spec, build, shapes_of, spec_for, spec_of
from tests.models.sizes import small

ARCHITECTURES = (
    *("vit_small_patch14_reg4_dinov2", "vit_small_patch16_dinov3", "swin_tiny_patch4_window7_224", "convnextv2_atto"),
    *("beit_base_patch16_224", "vit_small_patch16_rope_mixed_224"),
)
GENERATING = ("sws", "any-size", "tleg", "share-init", "supernet")
EXTRACTING = ("pretrained:truncate=true", "heur-lg:keep=last9", "auto-lg:keep=first9", "weight-selection")


def spec_of_method(architecture: str) -> Spec:
    spec = small(architecture)
    return spec.replace(depths=tuple(4 for _ in spec.depths)) if spec.depths else spec.replace(depth=4)


def noisy(module: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return module.eval()


def images_of(spec: Spec) -> torch.Tensor:
    return torch.randn(2, 3, spec.image, spec.image, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("text", GENERATING)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_an_expansion_to_the_auxiliarys_own_size_computes_its_logits(architecture: str, text: str) -> None:
    spec, method = spec_of_method(architecture), create_method(text)
    if text == "tleg" and "mixed" in architecture:
        with pytest.raises(UserError, match="values of every layer"):
            method.auxiliary(spec)
        return
    torch.manual_seed(0)
    auxiliary = noisy(method.auxiliary(spec))
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
    model = noisy(build(spec, seed=0))
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
    method, model = create_method("weight-selection"), noisy(build(spec, seed=0))
    half = spec.replace(width=spec.width // 2, heads=max(1, spec.heads // 2))
    expanded = method.expand(method.extract(model), half).eval()
    assert bool(expanded(images_of(spec)).isfinite().all())
    values = {float(value) for tensor in model.state_dict().values() for value in tensor.flatten()}
    for name, tensor in expanded.state_dict().items():
        if not name.startswith("head"):
            assert {float(value) for value in tensor.flatten()} <= values, name


@pytest.mark.parametrize("name", ["wave", "ligo", "mimetic"])
def test_what_a_method_cannot_do_is_said(name: str) -> None:
    spec = small("convnext_atto")
    method = METHODS[name]()
    with pytest.raises(UserError, match="convnext_atto") as refusal:
        if name == "wave":
            method.auxiliary(spec)
        elif name == "mimetic":
            method.expand(None, spec)
        else:
            method.expand(method.extract(build(spec)), spec)
    assert "\n" not in str(refusal.value)


def test_shared_blocks_do_not_mix_running_statistics() -> None:
    with pytest.raises(UserError, match="running statistics"):
        create_method("any-size").auxiliary(spec_for("levit_128s", classes=5))

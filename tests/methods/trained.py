"""Small plain models with distinct parameters everywhere, as if trained, and the specs of the tests."""

from typing import TypeVar

import torch
from hypothesis import strategies as st
from timm.models.vision_transformer import VisionTransformer

from ray_learngene.methods.base import Learngene
from ray_learngene.methods.registry import create_method
from ray_learngene.models.build import build
from ray_learngene.models.specs import PRESETS, Spec

ModuleT = TypeVar("ModuleT", bound=torch.nn.Module)

NANO = PRESETS["nano"].replace(depth=4)

specs = st.builds(
    lambda heads, size, depth, patch, side, classes, ratio: Spec(
        width=heads * size,
        heads=heads,
        depth=depth,
        patch=patch,
        image=patch * side,
        classes=classes,
        mlp_ratio=ratio,
    ),
    heads=st.integers(1, 4),
    size=st.sampled_from([4, 8, 12]),
    depth=st.integers(1, 5),
    patch=st.integers(1, 3),
    side=st.integers(1, 3),
    classes=st.integers(1, 5),
    ratio=st.sampled_from([1.0, 2.0, 4.0]),
)


def noisy(module: ModuleT, scale: float = 0.1, seed: int | None = None) -> ModuleT:
    """Return a module as if trained: no bias is 0, no gain 1, and no two layers are alike."""
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    return module.eval()


def trained(spec: Spec, seed: int = 0) -> VisionTransformer:
    """Return a noisy plain model."""
    return noisy(build(spec, seed=seed), seed=seed)


def learngene_of(text: str, spec: Spec, seed: int = 0) -> Learngene:
    """Return the learngene that a source method takes from such a model."""
    return create_method(text).extract(trained(spec, seed))


def images_of(spec: Spec) -> torch.Tensor:
    return torch.randn(2, *spec.image, generator=torch.Generator().manual_seed(1))


def layer_of(model: torch.nn.Module, layer: int) -> dict[str, torch.Tensor]:
    """Return the parameters of one block by their names in it."""
    start = f"blocks.{layer}."
    return {name.removeprefix(start): x for name, x in model.state_dict().items() if name.startswith(start)}


def assert_untied(model: torch.nn.Module) -> None:
    parameters = list(model.parameters())
    assert len({parameter.untyped_storage().data_ptr() for parameter in parameters}) == len(parameters)
    assert all(parameter.device.type == "cpu" for parameter in parameters)

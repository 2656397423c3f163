"""The frozen model that teaches, ready for a device and a precision."""

from __future__ import annotations

import pickle

import pytest
import timm
import torch

from ray_learngene.ancestry.model import Ancestry

CPU = torch.device("cpu")
MODELS = {  # with convolutions, linear layers or both, and subclasses of them
    "levit_128s": {},
    "deit_tiny_patch16_224": {"img_size": 64, "depth": 2},
    "efficientnet_lite0": {},
    "convnext_atto": {},
    "beit_base_patch16_224": {"img_size": 64, "depth": 2},
    "nf_resnet26": {},  # standardises its convolutions' weights
}


@pytest.mark.parametrize("name", MODELS)
def test_weights_that_are_rounded_once_give_the_bits_that_autocast_gives(name: str) -> None:
    torch.manual_seed(0)
    ancestry = Ancestry(timm.create_model(name, num_classes=10, **MODELS[name]))
    images = torch.randn(2, 3, ancestry.image_size, ancestry.image_size)
    ready = ancestry.ready(CPU, compiled=False, autocast=torch.bfloat16)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(ready(images), ancestry(images))
    assert any(parameter.dtype == torch.bfloat16 for parameter in ready.parameters())
    assert all(parameter.dtype == torch.float32 for parameter in ancestry.parameters())
    assert ready.sha256() == ancestry.sha256() == Ancestry(ancestry.model).sha256()
    assert ancestry.ready(CPU, compiled=False, autocast=torch.bfloat16) is ready
    assert len(pickle.dumps(ancestry)) < 1.1 * sum(tensor.nbytes for tensor in ancestry.state_dict().values()) + 10**5


def test_without_autocast_it_is_itself() -> None:
    ancestry = Ancestry(timm.create_model("deit_tiny_patch16_224", img_size=64, depth=1, num_classes=3))
    assert ancestry.ready(CPU, compiled=False) is ancestry


@pytest.mark.parametrize("autocast", [None, torch.bfloat16])
def test_images_that_another_model_would_normalise_get_the_same_answers(autocast: torch.dtype | None) -> None:
    model = timm.create_model("deit_tiny_patch16_224", img_size=32, depth=1, num_classes=3)
    ancestry, own = Ancestry(model), Ancestry(model)
    pixels = torch.rand(4, 3, 32, 32)
    mean, std = ((0.5, 0.4, 0.3), (0.5, 0.25, 0.125))
    given, expected = (
        (pixels - torch.tensor(m).reshape(3, 1, 1)) / torch.tensor(s).reshape(3, 1, 1)
        for m, s in ((mean, std), (own.mean, own.std))
    )
    assert own.mean != mean
    ancestry.ready(CPU, compiled=False, autocast=autocast)
    ancestry.accept(mean, std)
    ready = pickle.loads(pickle.dumps(ancestry)).ready(CPU, compiled=False, autocast=autocast)
    with torch.no_grad(), torch.autocast("cpu", autocast, enabled=autocast is not None):
        torch.testing.assert_close(ready(given), own(expected), rtol=0, atol=1e-5 if autocast is None else 2e-2)
    assert ready.sha256() == own.sha256() and ancestry.state_dict().keys() == own.state_dict().keys()
    ancestry.accept(own.mean, own.std)
    assert torch.equal(ancestry(expected), own(expected))

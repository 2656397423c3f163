"""The frozen model that teaches, ready for a device and a precision."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

from ray_learngene.ancestry.model import Ancestry, create_timm, load_ancestry
from ray_learngene.config.image import ImageShape
from ray_learngene.errors import UserError
from ray_learngene.models.preprocessing import Preprocessing
from ray_learngene.store.store import Store
from tests.ancestry.teachers import save_teacher

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


def loaded(tmp_path: Path, kind: str) -> tuple[Ancestry, torch.nn.Module]:
    model = save_teacher(tmp_path / kind, kind)
    return load_ancestry(f"local-dir:{tmp_path / kind}", Store(str(tmp_path / "store"))), model


def test_a_teacher_of_one_channel_sees_the_grey_image(tmp_path: Path) -> None:
    ancestry, model = loaded(tmp_path, "one-channel")
    assert ancestry.mean == (0.4,) * 3 and ancestry.std == (0.3,) * 3
    pixels = torch.rand(4, 3, 8, 8)
    grey = (pixels * torch.tensor((0.299, 0.587, 0.114)).view(3, 1, 1)).sum(1, keepdim=True)
    expected = model((grey - 0.4) / 0.3)
    torch.testing.assert_close(ancestry((pixels - 0.4) / 0.3), expected, rtol=1e-5, atol=1e-5)
    ancestry.accept((0.5, 0.4, 0.3), (0.5, 0.25, 0.125))
    given = (pixels - torch.tensor((0.5, 0.4, 0.3)).view(3, 1, 1)) / torch.tensor((0.5, 0.25, 0.125)).view(3, 1, 1)
    torch.testing.assert_close(pickle.loads(pickle.dumps(ancestry))(given), expected, rtol=1e-5, atol=1e-5)


def test_a_teacher_of_other_sides_sees_the_whole_image(tmp_path: Path) -> None:
    ancestry, model = loaded(tmp_path, "non-square")
    assert ancestry.input_size == (8, 12) and not ancestry.square
    images = torch.randn(2, 3, 8, 8)
    expected = model(F.interpolate(images, (8, 12), mode="bicubic", antialias=True))
    torch.testing.assert_close(ancestry(images), expected)
    assert torch.equal(ancestry(F.interpolate(images, (8, 12))), model(F.interpolate(images, (8, 12))))


@pytest.mark.parametrize(
    ("kind", "mode", "antialias"),
    [("", "bicubic", True), ("bilinear", "bilinear", True), ("box", "area", False), ("random", "bicubic", True)],
)
def test_a_teacher_of_another_size_gets_images_resized_as_its_own_were(
    kind: str, mode: str, antialias: bool, tmp_path: Path
) -> None:
    """Names of results hold what differs from the bicubic that every teacher had once."""
    ancestry, model = loaded(tmp_path, kind)
    images = torch.randn(2, 3, 12, 12)
    torch.testing.assert_close(ancestry(images), model(F.interpolate(images, (8, 8), mode=mode, antialias=antialias)))
    same = images[..., :8, :8]
    assert torch.equal(ancestry(same), model(same)) and ancestry.resizing(ImageShape.of(8)) == {}
    assert ancestry.resizing(ImageShape.of(12)) == ({} if mode == "bicubic" else {"ancestry_resizing": mode})


def test_teachers_of_other_channels_are_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--ancestry local-dir:.* takes images of 4 channels; choose one of 3, or of 1"):
        loaded(tmp_path, "four-channels")


def test_preprocessing_that_is_not_ours_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="^x.* interpolation is 'random'"):
        Preprocessing.of(loaded(tmp_path, "random")[0].model, "x")


@pytest.mark.parametrize(("kind", "shape"), [("one-channel", (1, 8, 8)), ("non-square", (3, 8, 12))])
def test_preprocessing_has_the_shape_of_the_model(tmp_path: Path, kind: str, shape: tuple[int, ...]) -> None:
    found = Preprocessing.of(loaded(tmp_path, kind)[0].model, "x")
    assert found.image_size == shape and len(found.mean) == len(found.std) == shape[0]


def test_a_teacher_of_rgb_sees_grey_images_in_its_own_normalisation(tmp_path: Path) -> None:
    ancestry, model = loaded(tmp_path, "")
    pixels = torch.rand(2, 1, 8, 8)
    ancestry.accept((0.5,), (0.25,))
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in (ancestry.mean, ancestry.std))
    torch.testing.assert_close(ancestry((pixels - 0.5) / 0.25), model((pixels.expand(-1, 3, -1, -1) - mean) / std))


def test_every_interpolation_of_timm_is_known(tmp_path: Path) -> None:
    assert Preprocessing.of(loaded(tmp_path, "lanczos")[0].model, "x").interpolation == "lanczos"


def test_what_a_name_may_stand_for(tmp_path: Path) -> None:
    save_teacher(tmp_path / "teacher")
    names = {
        str(tmp_path / "teacher"): "this is a folder; write local-dir:",
        str(tmp_path / "teacher" / "model.safetensors"): f"the timm model folder that it is in, local-dir:{tmp_path}",
        "timm/levit_384.fb": "write hf-hub:timm/levit_384.fb for one on the hub",
        "ancestries/digits": "write store:ancestries/digits",
        "local_dir:teacher": "models are at store:, local-dir: or hf-hub:, not at local_dir:; did you mean local-dir?",
        "levit_9": "timm has no such model; did you mean levit_",
        "photographs": "timm has no such model; write store:ancestries/NAME for one in the store",
    }
    for name, says in names.items():
        with pytest.raises(UserError) as error:
            create_timm(name, "--ancestry")
        assert says in str(error.value) and str(error.value).startswith(f"--ancestry {name}: ")


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        (GatedRepoError, "is gated: accept its terms on the hub, and set HF_TOKEN"),
        (RepositoryNotFoundError, "HF_TOKEN"),
    ],
)
def test_a_gated_model_is_told_about_the_token(
    kind: type[Exception], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object, **__: object) -> None:
        raise RuntimeError("no config") from kind.__new__(kind)  # what it is made of differs between versions

    monkeypatch.setattr(timm, "create_model", refused)
    for pretrained in (True, False):
        with pytest.raises(UserError, match=says):
            create_timm("hf-hub:team/model", "--ancestry", pretrained=pretrained)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"depths": [1, 1, 1, 1], "dims": [8, 8]}, "IndexError: list index out of range"),
        ({"depths": 3}, "requires depths to be a list"),
        ({"nothing": 1}, "unexpected keyword argument 'nothing'"),
    ],
)
def test_arguments_that_timm_cannot_build_from_are_one_line(arguments: dict[str, object], says: str) -> None:
    with pytest.raises(UserError, match=f"^--model convnext_atto: .*{says}") as caught:
        create_timm("convnext_atto", "--model", **arguments)
    assert "see --model-args" in str(caught.value) and "\n" not in str(caught.value)

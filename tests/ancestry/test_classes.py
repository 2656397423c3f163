"""The order of a teacher's classes: by name where both sides have names, else by what it knows."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from ray_learngene.ancestry.classes import match_classes
from ray_learngene.ancestry.model import Ancestry
from ray_learngene.cli.main import main
from ray_learngene.data.class_names import order_of
from ray_learngene.data.image_set import ArraySet, ImageSets
from ray_learngene.errors import UserError
from ray_learngene.models.timm_folder import labels_of, load_timm
from tests.ancestry.teachers import DATA, save_teacher

NATURAL = tuple(str(number) for number in range(12))  # as timm counts these folders
OURS = tuple(sorted(NATURAL))
REVERSED = tuple(reversed(NATURAL))
LETTERS = tuple("abcdefghijkl")


class Brightness(nn.Module):
    """A teacher that knows the class of an image by how bright it is, in an order of its own."""

    num_classes = 12

    def __init__(self, order: tuple[str, ...], label_names: object = None, knows: bool = True) -> None:
        super().__init__()
        names = {"label_names": label_names} if label_names else {}
        self.pretrained_cfg = {**DATA, **names}
        centres = [20.0 * NATURAL.index(name) + (0 if knows else 1000) for name in order]
        self.centres = nn.Parameter(torch.tensor(centres))

    def forward(self, images: Tensor) -> Tensor:
        brightness = (images.mean(dim=(1, 2, 3)) * 0.5 + 0.5) * 255
        return -(brightness[:, None] - self.centres).square()


def images(classes: tuple[str, ...]) -> ImageSets:
    """Twelve classes of flat images, each as bright as its number says."""
    labels = np.repeat(np.arange(12), 10)
    bright = np.array([20 * (NATURAL.index(name) if name in NATURAL else classes.index(name)) for name in classes])
    pixels = np.broadcast_to(bright[labels, None, None], (120, 8, 8)).astype(np.uint8)
    both = ArraySet("flat", pixels, labels, classes)
    return ImageSets(both, both)


def top1(ancestry: Ancestry, sets: ImageSets) -> float:
    pixels = torch.tensor(np.stack([np.asarray(sets.val.image(index)) for index in range(len(sets.val))]))
    logits = ancestry((pixels.permute(0, 3, 1, 2) / 255 - 0.5) / 0.5)
    return float((logits.argmax(-1).numpy() == sets.val.labels).mean())


def matched(order: tuple[str, ...], names: object, classes: tuple[str, ...], **options: bool) -> float:
    ancestry, sets = Ancestry(Brightness(order, names)), images(classes)
    match_classes(ancestry, "x", "y", sets, **options)
    return top1(ancestry, sets)


@pytest.mark.parametrize("order", [NATURAL, OURS, REVERSED])
@pytest.mark.parametrize("as_dict", [False, True])
def test_the_same_names_in_another_order_are_mapped(order: tuple[str, ...], as_dict: bool) -> None:
    names = {str(index): name for index, name in enumerate(order)} if as_dict else list(order)
    assert matched(order, names, OURS) == 1


def test_a_model_of_another_order_is_another_model_for_what_is_cached() -> None:
    ancestry, own = (Ancestry(Brightness(NATURAL, list(NATURAL))) for _ in range(2))
    match_classes(ancestry, "x", "y", images(OURS))
    assert ancestry.labels == OURS and ancestry.sha256() != own.sha256()
    assert ancestry.ready(torch.device("cpu"), compiled=False, autocast=torch.bfloat16).sha256() == ancestry.sha256()
    match_classes(own, "x", "y", images(NATURAL))
    assert own.sha256() == Ancestry(own.model).sha256()


def test_timms_order_without_names_is_refused_and_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError) as error:
        matched(NATURAL, None, OURS)
    for text in ("--ancestry x names no classes: top-1 16.7 % on 120", "100.0 % in timm's order", "(0, 1, 2, ...)"):
        assert text in str(error.value)
    assert "label_names" in str(error.value) and "--no-labels" in str(error.value) and "\n" not in str(error.value)
    assert "chance: 8.3 %" in capsys.readouterr().out
    assert matched(NATURAL, None, OURS, labelled=False) < 0.2
    assert "going on" in capsys.readouterr().err


def test_our_order_without_names_is_measured_and_taken(capsys: pytest.CaptureFixture[str]) -> None:
    assert matched(OURS, None, OURS) == 1
    assert "top-1 100.0 % on 120 validation images in the order of --data (chance: 8.3 %)" in capsys.readouterr().out


def test_a_model_that_knows_nothing_of_these_classes_is_refused() -> None:
    with pytest.raises(UserError, match="in timm's order of class folders, near chance: it was not trained for these"):
        match_classes(Ancestry(Brightness(OURS, None, knows=False)), "x", "y", images(OURS))
    with pytest.raises(UserError, match="in the order of --data, near chance"):
        match_classes(Ancestry(Brightness(OURS, None, knows=False)), "x", "y", images(LETTERS))


def test_numbers_are_no_names(capsys: pytest.CaptureFixture[str]) -> None:
    assert matched(NATURAL, list(LETTERS), NATURAL) == 1
    assert "calls class 0 'a', --data y calls it '0': top-1 100.0 %" in capsys.readouterr().out
    with pytest.raises(UserError, match="they were not labelled alike"):
        matched(NATURAL, list(LETTERS), tuple("mnopqrstuvwx"))
    with pytest.raises(UserError, match="calls class 0 'a', --data y calls it '0': top-1 .* near chance"):
        matched(REVERSED, list(LETTERS), NATURAL)


def test_another_number_of_classes() -> None:
    ancestry, sets = Ancestry(Brightness(OURS)), images(OURS)
    ancestry.classes = 7
    with pytest.raises(UserError, match="--ancestry x has 7 classes, --data y has 12"):
        match_classes(ancestry, "x", "y", sets)
    match_classes(ancestry, "x", "y", sets, labelled=False)


def test_spellings_and_orders_of_names() -> None:
    assert order_of(("cafe\u0301", "tea"), ("tea", "caf\u00e9")) == [1, 0]
    assert order_of(("a", "b"), ("a", "c")) is None and order_of(("a", "a"), ("a", "b")) is None


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["a", "b"], ("a", "b")),
        ({"1": "b", "0": "a"}, ("a", "b")),
        ({10: "b", 9: "a"}, ()),
        ({"b": 1, "a": 0}, ("a", "b")),
        ({"n01": "a", "n02": "b"}, ()),
        (None, ()),
    ],
)
def test_names_as_timm_folders_carry_them(names: object, expected: tuple[str, ...]) -> None:
    assert labels_of(SimpleNamespace(pretrained_cfg={"label_names": names})) == expected  # type: ignore[arg-type]


@pytest.mark.parametrize("names", [OURS[:11], (*OURS, "x")])
def test_too_few_or_too_many_names_name_no_class(
    names: tuple[str, ...], capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    assert matched(OURS, names, OURS) == 1.0
    assert f"label_names in config.json has {len(names)} names for 12 classes: left out" in caplog.text


def test_evaluate_says_in_which_order_it_takes_classes_without_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_teacher(tmp_path / "model", classes=12)
    for split in ("train", "val"):
        for number in range(12):
            (tmp_path / "data" / split / str(number)).mkdir(parents=True)
            Image.new("RGB", (8, 8), (20 * number,) * 3).save(tmp_path / "data" / split / str(number) / "0.png")
    assert main(["evaluate", str(tmp_path / "model"), "--data", str(tmp_path / "data")]) == 0
    told = capsys.readouterr().err
    assert "names no classes: they are taken in the order of --data" in told
    assert "(0, 1, 10, ...); timm counts 0, 1, 2, ..." in told


def test_evaluate_maps_names_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    digits = [str(digit) for digit in range(10)]
    save_teacher(tmp_path / "model", model_config={"label_names": digits})
    assert labels_of(load_timm(tmp_path / "model")) == tuple(digits)
    assert main(["evaluate", str(tmp_path / "model"), "--data", "digits"]) == 0
    told = capsys.readouterr().out
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    weights = load_timm(tmp_path / "model")
    order = [3, 1, 0, 2, 9, 8, 7, 6, 5, 4]
    with torch.no_grad():
        weights.head.weight.copy_(weights.head.weight[order].clone())  # type: ignore[union-attr, operator]
        weights.head.bias.copy_(weights.head.bias[order].clone())  # type: ignore[union-attr, operator]
    config["label_names"] = [digits[index] for index in order]
    from safetensors.torch import save_file

    save_file(weights.state_dict(), tmp_path / "model" / "model.safetensors")
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    assert main(["evaluate", str(tmp_path / "model"), "--data", "digits"]) == 0
    assert capsys.readouterr().out == told


def test_a_validation_image_that_cannot_be_read_is_skipped_where_others_are() -> None:
    class Torn(ArraySet):
        def open(self, index: int) -> Image.Image:
            if index == 7:
                raise UserError("torn")
            return super().open(index)

    whole = images(OURS).val
    assert isinstance(whole, ArraySet)
    torn = Torn("torn", whole.pixels + np.uint8(1), whole.labels, OURS)
    with pytest.raises(UserError, match="torn, or go on without it: --unreadable skip"):
        match_classes(Ancestry(Brightness(OURS)), "x", "y", ImageSets(torn, torn))
    match_classes(Ancestry(Brightness(OURS)), "x", "y", ImageSets(torn, torn), unreadable="skip")

"""Image sets known by name, with the original CIFAR-10 layout in small."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ray_learngene.config import DataConfig
from ray_learngene.data.formats.timm_sets import TorchvisionSet
from ray_learngene.data.image_set import ArraySet, hold_out
from ray_learngene.data.open import open_image_sets
from ray_learngene.errors import UserError


def test_digits() -> None:
    sets = open_image_sets(DataConfig(data="digits"))
    assert len(sets.train) + len(sets.val) == 1797 and sets.train.classes == tuple("0123456789")
    shares = np.bincount(sets.val.labels) / (np.bincount(sets.train.labels) + np.bincount(sets.val.labels))
    assert np.allclose(shares, 0.2, atol=0.01)
    image = sets.train.image(0)
    assert image.mode == "RGB" and image.size == (8, 8) and image.getextrema()[0] == (0, 239)
    assert sets.train.encoded(0) is None and sets.train.describe(0) == "digits 0"
    again = open_image_sets(DataConfig(data="digits"))
    assert again.train.fingerprint == sets.train.fingerprint != sets.val.fingerprint


@given(st.lists(st.integers(1, 40), min_size=1, max_size=5), st.floats(0.01, 0.99))
def test_holdout(counts: list[int], share: float) -> None:
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(len(counts)), counts))
    pixels = np.zeros((len(labels), 1, 1), dtype=np.uint8)
    sets = hold_out(ArraySet("blank", pixels, labels, tuple(map(str, range(len(counts))))), share)
    held = np.bincount(sets.val.labels, minlength=len(counts))
    kept = np.bincount(sets.train.labels, minlength=len(counts))
    assert (held + kept == counts).all() and (kept > 0).all()
    assert all(value > 0 for value, count in zip(held, counts, strict=True) if count > 1)
    assert (np.abs(held - share * np.array(counts)) <= 1).all()


def write_cifar10(folder: Path, rows: int = 4) -> np.ndarray:
    """Six binary files of random images; the pixels `[6, rows, 32, 32, 3]`."""
    folder.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (6, rows, 32, 32, 3), dtype=np.uint8)
    for number, images in enumerate(pixels):
        name = "test_batch.bin" if number == 5 else f"data_batch_{number + 1}.bin"
        labels = (np.arange(rows, dtype=np.uint8) + 2 * number) % 10
        (folder / name).write_bytes(np.c_[labels, images.transpose(0, 3, 1, 2).reshape(rows, -1)].tobytes())
    return pixels


@pytest.mark.parametrize("below", [".", "cifar-10-batches-bin", "package/cifar-10-batches-bin"])
def test_cifar10_binaries(tmp_path: Path, below: str) -> None:
    pixels = write_cifar10(tmp_path / "cifar" / below)
    sets = open_image_sets(DataConfig(data="cifar10", data_dir=str(tmp_path / "cifar")))
    assert len(sets.train) == 20 and len(sets.val) == 4
    assert sets.train.classes[0] == "airplane" and sets.train.classes[9] == "truck"
    assert sets.train.labels[:6].tolist() == [0, 1, 2, 3, 2, 3] and sets.val.labels.tolist() == [0, 1, 2, 3]
    assert (np.asarray(sets.train.image(6)) == pixels[1, 2]).all() and (
        np.asarray(sets.val.image(3)) == pixels[5, 3]
    ).all()


def test_cifar10_errors(tmp_path: Path) -> None:
    config = DataConfig(data="cifar10", data_dir=str(tmp_path / "cifar"))
    write_cifar10(tmp_path / "cifar")
    file = tmp_path / "cifar" / "data_batch_2.bin"
    content = file.read_bytes()
    file.write_bytes(content[:3073] + b"\x0b" + content[3074:])
    with pytest.raises(UserError, match=r"data_batch_2\.bin row 1: label 11 is above 9"):
        open_image_sets(config)
    file.write_bytes(content[:-1])
    with pytest.raises(UserError, match=r"data_batch_2\.bin is not a CIFAR-10 binary: 12,291 bytes"):
        open_image_sets(config)
    file.unlink()
    with pytest.raises(UserError, match=r"lacks data_batch_2\.bin"):
        open_image_sets(config)


def test_cifar10_that_cannot_be_downloaded(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder, so nothing can be downloaded into it")
    with pytest.raises(UserError, match="give --data-dir with the set's binary files"):
        open_image_sets(DataConfig(data="cifar10", data_dir=str(tmp_path / "file")))


def test_torchvision_sets(tmp_path: Path) -> None:
    for split in ("train", "val"):
        for number, name in enumerate(("first", "second")):
            (tmp_path / split / name).mkdir(parents=True)
            for index in range(2 + (split == "train")):
                Image.new("L", (5, 4), 40 * number + index).save(tmp_path / split / name / f"{index}.png")
    sets = open_image_sets(DataConfig(data="torch/folder", data_dir=str(tmp_path)))
    assert sets.train.classes == ("first", "second") and sets.val.labels.tolist() == [0, 0, 1, 1]
    assert sets.train.labels.tolist() == [0, 0, 0, 1, 1, 1] and sets.train.image(4).getpixel((0, 0)) == (41, 41, 41)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("torch/nothing", "torch/nothing cannot be opened or downloaded into .*: Unknown torchvision dataset"),
        ("torch/imagenet", "torch/imagenet cannot be opened"),
        ("wds/shards", "run `learngene data convert --data wds/shards --out FOLDER`"),
        ("nonsense", "no image set 'nonsense': give digits, cifar10, "),
    ],
)
def test_errors(tmp_path: Path, data: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        open_image_sets(DataConfig(data=data, data_dir=str(tmp_path)))
    assert "\n" not in str(caught.value)


def test_a_missing_package_is_named() -> None:
    with pytest.raises(UserError, match=r"^hfds/no/such: |^hfds/no/such needs .*: pip install datasets$"):
        open_image_sets(DataConfig(data="hfds/no/such"))


def test_a_share_of_the_images_is_taken_evenly_from_every_class() -> None:
    whole = open_image_sets(DataConfig(data="digits"))
    some = open_image_sets(DataConfig(data="digits", train_share=0.25, val_share=0.5))
    for part, all_of_it, share in ((some.train, whole.train, 0.25), (some.val, whole.val, 0.5)):
        counts, before = (np.bincount(images.labels, minlength=10) for images in (part, all_of_it))
        assert (np.abs(counts - share * before) <= 1).all()
    assert some.train.fingerprint != whole.train.fingerprint
    assert open_image_sets(DataConfig(data="digits", train_share=0.25)).val.fingerprint == whole.val.fingerprint


def test_validating_on_a_holdout_leaves_the_validation_split_alone() -> None:
    sets = open_image_sets(DataConfig(data="digits", validate_on="holdout", holdout=0.2))
    whole = open_image_sets(DataConfig(data="digits"))
    assert len(sets.train) + len(sets.val) == len(whole.train)
    assert {sets.val.describe(index) for index in range(len(sets.val))} <= {
        whole.train.describe(index) for index in range(len(whole.train))
    }
    assert sets.note and "held out of the training split" in sets.note


class Twice:
    """Like torchvision's ImageNet: synonyms, one name for two classes; and like its QMNIST: more than labels."""

    targets = ((2, 7), (0, 7), (1, 7), (0, 7))
    classes = (("crane", "bird"), ("tench",), ("crane",))
    wnids = ("n02012849", "n01440764", "n03126707")


def test_classes_of_one_name_are_told_apart() -> None:
    some = TorchvisionSet("torch/imagenet train", Twice())
    assert some.classes == ("crane (n02012849)", "tench", "crane (n03126707)") and some.labels.tolist() == [2, 0, 1, 0]


def test_cifar10_below_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cifar10(tmp_path / "cifar")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert len(open_image_sets(DataConfig(data="cifar10", data_dir="~/cifar")).train) == 20

"""Folders of class folders."""

from pathlib import Path

import numpy as np
import pytest

from ray_learngene.config import DataConfig
from ray_learngene.data import ImageSets, open_image_sets
from ray_learngene.errors import UserError
from tests.data.image_files import photo, write_class_folders


def opened(root: Path, **options: object) -> ImageSets:
    return open_image_sets(DataConfig(data=str(root), **options))


@pytest.mark.parametrize("validation", ["val", "validation", "test"])
def test_split_folders(tmp_path: Path, validation: str) -> None:
    write_class_folders(tmp_path / "train", {"dog": 3, "Cat": 2})
    write_class_folders(tmp_path / validation, {"dog": 2, "Cat": 1})
    photo(7).save(tmp_path / "train" / "dog" / "._0.jpg")
    sets = opened(tmp_path)
    assert sets.train.classes == sets.val.classes == ("Cat", "dog") and sets.note is None
    assert sets.train.labels.tolist() == [0, 0, 1, 1, 1] and sets.val.labels.tolist() == [0, 1, 1]
    assert sets.train.labels.dtype == np.int64 and len(sets.train) == 5
    assert sets.train.describe(2) == str(tmp_path / "train" / "dog" / "0.jpg")
    assert sets.train.image(2).mode == "RGB" and sets.train.image(2).size == (24, 16)
    assert sets.train.encoded(2) == (tmp_path / "train" / "dog" / "0.jpg").read_bytes()


def test_images_below_a_class_folder_belong_to_it(tmp_path: Path) -> None:
    write_class_folders(tmp_path / "a", {"x": 2, "y": 3})
    write_class_folders(tmp_path, {"b": 4})
    sets = opened(tmp_path)
    assert sets.train.classes == ("a", "b") and len(sets.train) + len(sets.val) == 9


def test_holdout_per_class(tmp_path: Path) -> None:
    sets = opened(write_class_folders(tmp_path / "set", {"a": 20, "b": 4, "c": 1}), holdout=0.2)
    assert np.bincount(sets.val.labels, minlength=3).tolist() == [4, 1, 0]
    assert np.bincount(sets.train.labels).tolist() == [16, 3, 1]
    assert sets.note is not None and "no validation split" in sets.note and "20 %" in sets.note
    names = [part.describe(index) for part in (sets.train, sets.val) for index in range(len(part))]
    assert len(set(names)) == 25
    again = opened(tmp_path / "set", holdout=0.2)
    assert [again.val.describe(index) for index in range(5)] == names[20:]


def test_fingerprint_follows_names_sizes_and_labels(tmp_path: Path) -> None:
    root = write_class_folders(tmp_path / "set", {"a": 5, "b": 5})
    prints = [opened(root).train.fingerprint]
    assert opened(root).train.fingerprint == prints[0] and len(prints[0]) == 64
    (root / "a" / "1.jpg").write_bytes((root / "a" / "1.jpg").read_bytes() + b"\0")
    prints.append(opened(root).train.fingerprint)
    (root / "a" / "1.jpg").rename(root / "b" / "9.jpg")
    prints.append(opened(root).train.fingerprint)
    assert len(set(prints)) == 3


def error(root: Path) -> str:
    with pytest.raises(UserError) as caught:
        opened(root)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_empty_class_folder(tmp_path: Path) -> None:
    write_class_folders(tmp_path, {"a": 2, "b": 0})
    assert f"class folder {tmp_path / 'b'} has no images" in error(tmp_path)


def test_class_of_the_validation_split_only(tmp_path: Path) -> None:
    write_class_folders(tmp_path / "train", {"a": 2, "b": 2})
    write_class_folders(tmp_path / "val", {"a": 2, "zebra": 2})
    assert "'zebra'" in error(tmp_path) and "not in the training split" in error(tmp_path)


def test_nothing_to_train_on(tmp_path: Path) -> None:
    assert "has no class folders" in error(tmp_path)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "notes.txt").write_text("no image")
    assert "has no images" in error(tmp_path)
    write_class_folders(tmp_path / "val", {"a": 1})
    assert "has val/ but no train/" in error(tmp_path)


def test_stray_image(tmp_path: Path) -> None:
    write_class_folders(tmp_path, {"a": 2, "b": 2})
    photo().save(tmp_path / "cover.png")
    assert f"{tmp_path / 'cover.png'} is outside any class folder" in error(tmp_path)


def test_single_images_leave_nothing_to_validate_on(tmp_path: Path) -> None:
    assert "validation split is empty" in error(write_class_folders(tmp_path / "set", {"a": 1, "b": 1}))


def test_unknown_set(tmp_path: Path) -> None:
    message = error(tmp_path / "missing")
    assert "no image set" in message and "digits, cifar10, a folder" in message

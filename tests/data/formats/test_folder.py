"""Folders of class folders."""

import os
import unicodedata
from pathlib import Path

import numpy as np
import pytest

from ray_learngene.config import DataConfig, DistillConfig
from ray_learngene.data.check import check_images
from ray_learngene.data.convert import convert
from ray_learngene.data.image_set import ImageSets
from ray_learngene.data.open import open_image_sets
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


@pytest.mark.parametrize(
    ("folders", "train", "val"),
    [
        (("Train", "Test"), "Train", "Test"),
        (("Training", "Testing"), "Training", "Testing"),
        (("training_set", "test_set"), "training_set", "test_set"),
        (("seg_train", "seg_test"), "seg_train", "seg_test"),
        (("train", "valid", "test"), "train", "valid"),
        (("train", "Val", "annotations"), "train", "Val"),
        (("split=train", "split=val"), "split=train", "split=val"),
        (("train2014", "val2014"), "train2014", "val2014"),
        (("my_new_trainset", "my_new_testset"), "my_new_trainset", "my_new_testset"),
    ],
)
def test_splits_by_their_usual_names(tmp_path: Path, folders: tuple[str, ...], train: str, val: str) -> None:
    for number, name in enumerate(folders):
        write_class_folders(tmp_path / name, {"cat": 2 + number, "dog": 1})
    sets = opened(tmp_path)
    assert sets.train.classes == ("cat", "dog")
    assert sets.note == (f"not read in {tmp_path}: annotations (5 images)" if "annotations" in folders else None)
    assert sets.train.describe(0).startswith(str(tmp_path / train)) and len(sets.train) == 3 + folders.index(train)
    assert sets.val.describe(0).startswith(str(tmp_path / val)) and len(sets.val) == 3 + folders.index(val)


def test_a_test_split_without_labels_is_left_alone(tmp_path: Path) -> None:
    write_class_folders(tmp_path / "train", {"cat": 10, "dog": 10})
    write_class_folders(tmp_path, {"test": 3})
    sets = opened(tmp_path)
    assert sets.train.classes == ("cat", "dog") and len(sets.train) + len(sets.val) == 20
    assert sets.note is not None and "no validation split" in sets.note
    write_class_folders(tmp_path, {"val": 3})
    assert f"{tmp_path / 'val'} has no class folders" in error(tmp_path)


def test_folders_that_could_be_the_same_split_are_refused(tmp_path: Path) -> None:
    for name in ("seg_train", "det_train"):
        write_class_folders(tmp_path / name, {"cat": 2, "dog": 2})
    assert "has det_train and seg_train: which one is train?" in error(tmp_path)
    write_class_folders(tmp_path / "train", {"cat": 5, "dog": 5})
    assert opened(tmp_path).train.describe(0).startswith(str(tmp_path / "train" / "cat"))


def test_classes_may_be_called_like_splits(tmp_path: Path) -> None:
    vehicles = write_class_folders(tmp_path / "vehicles", {"airplane": 2, "train": 2, "truck": 2})
    assert opened(vehicles).train.classes == ("airplane", "train", "truck")
    for name in ("test-tube", "train_station", "bullet_train", "val-badia", "val-gardena"):
        write_class_folders(tmp_path / name / "set" / name, {"old": 2, "new": 2})
        write_class_folders(tmp_path / name / "set", {"beaker": 2})
        assert opened(tmp_path / name / "set").train.classes == tuple(sorted(("beaker", name)))
    for number, names in enumerate((("blood_test", "eye_test"), ("test1", "test2"), ("train_1", "train_2", "car"))):
        assert opened(write_class_folders(tmp_path / str(number), dict.fromkeys(names, 2))).train.classes == tuple(
            sorted(names)
        )
    assert "has test/ and train/ but no train/ with class folders" in error(
        write_class_folders(tmp_path / "flat", {"train": 2, "test": 2})
    )
    assert "has test/ and train/ but no train/ with class folders" in error(
        write_class_folders(tmp_path / "more", {"train": 2, "test": 2, "x": 1})
    )


def test_other_folders_next_to_the_splits_are_left_out_and_named(tmp_path: Path) -> None:
    for name in ("train", "validation", "validation_hard", "val_maps", "test1"):
        write_class_folders(tmp_path / name, {"a": 2, "b": 2})
    write_class_folders(tmp_path, {"val_labels": 2})
    (tmp_path / "documents").mkdir()
    photo(1).save(tmp_path / "cover.jpg")
    sets = opened(tmp_path)
    assert sets.val.describe(0).startswith(str(tmp_path / "validation" / "a"))
    left = ", ".join(
        f"{name} ({count} images)" for name, count in (("val_labels", 2), ("val_maps", 4), ("validation_hard", 4))
    )
    assert sets.note == f"not read in {tmp_path}: {left}, outside any folder (1 image)"


def test_images_below_a_class_folder_belong_to_it(tmp_path: Path) -> None:
    write_class_folders(tmp_path / "a", {"x": 2, "y": 3})
    write_class_folders(tmp_path, {"b": 4})
    sets = opened(tmp_path)
    assert sets.train.classes == ("a", "b") and len(sets.train) + len(sets.val) == 9


def test_a_folder_one_level_too_high_is_refused_and_the_level_named(tmp_path: Path) -> None:
    for split in ("train", "val"):
        write_class_folders(tmp_path / "flowers" / split, {"cat": 2, "dog": 2})
    assert f"is a level too high: its folder flowers has train, val; give {tmp_path / 'flowers'}" in error(tmp_path)
    write_class_folders(tmp_path / "deep" / "x", {"cat": 2, "dog": 2})
    assert f"hold only folders (x/cat): give {tmp_path / 'deep' / 'x'} if" in error(tmp_path / "deep")


@pytest.mark.parametrize("options", [{}, {"validate_on": "holdout"}])
def test_one_class_is_refused_where_labels_are_used(tmp_path: Path, options: dict[str, str]) -> None:
    write_class_folders(tmp_path, {"only": 10})
    with pytest.raises(UserError, match="has only one class, 'only': .*--no-labels"):
        opened(tmp_path, **options)
    needed = {"ancestry": "x", "preset": "nano", "name": "x", "data": str(tmp_path), **options}
    assert open_image_sets(DistillConfig(labels=False, **needed)).train.classes == ("only",)
    assert convert(DataConfig(data=str(tmp_path), **options), str(tmp_path) + "-shards")["train"] in (8, 9)


def test_images_of_other_endings_are_read_and_what_is_not_is_named(tmp_path: Path) -> None:
    for part in ("train", "val"):
        write_class_folders(tmp_path / part, {"a": 2, "b": 2})
    for ending, kind in {".jfif": "JPEG", ".JPE": "JPEG", ".avif": "AVIF", ".pbm": "PPM"}.items():
        photo(9).save(tmp_path / "train" / "a" / f"x{ending}", kind)
    assert opened(tmp_path).note is None and len(opened(tmp_path).train) == 8
    check_images(opened(tmp_path).train, "full")
    for name in ("a/1.heic", "a/2.heic", "b/readme.TXT", "b/odd"):
        (tmp_path / "train" / name).write_text("x")
    os.mkfifo(tmp_path / "train" / "b" / "pipe.jpg")
    note = opened(tmp_path).note or ""
    assert note.startswith(f"not read in {tmp_path / 'train'}: 2 .heic (a/") and ", 1 .txt (b/readme.TXT)" in note
    assert "1 without ending (b/odd)" in note and "1 pipes or devices (b/pipe.jpg)" in note
    (tmp_path / "train" / "b" / "endless.jpg").symlink_to("/dev/zero")
    assert "2 pipes or devices (b/" in (opened(tmp_path).note or "")
    assert len(opened(tmp_path).train) == 8


def test_thumbnails_and_system_folders_are_no_images(tmp_path: Path) -> None:
    write_class_folders(tmp_path, {"a": 5, "b": 5})
    before = opened(tmp_path).train.fingerprint
    for name in ("a/@eaDir/0.jpg/SYNOPHOTO_THUMB_M.jpg", "lost+found/x.jpg", "__MACOSX/a/._0.jpg", "a/._0.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        photo().save(tmp_path / name)
    (tmp_path / "a" / "Thumbs.db").write_text("x")
    sets = opened(tmp_path)
    assert sets.train.classes == ("a", "b") and sets.train.fingerprint == before and "not read" not in (sets.note or "")


def test_a_loop_of_links_reads_a_file_once(tmp_path: Path) -> None:
    write_class_folders(tmp_path / "set", {"cat": 4, "dog": 4})
    before = opened(tmp_path / "set")
    (tmp_path / "set" / "cat" / "up").symlink_to("..")
    (tmp_path / "set" / "again").symlink_to(".")
    sets = opened(tmp_path / "set")
    assert sets.train.classes == ("cat", "dog") and sets.train.fingerprint == before.train.fingerprint
    assert "2 links to a folder around them (" in (sets.note or "")
    write_class_folders(tmp_path / "apart", {"more": 3})
    (tmp_path / "set" / "dog" / "linked").symlink_to(tmp_path / "apart" / "more")
    (tmp_path / "apart" / "more" / "back").symlink_to(tmp_path / "set" / "dog")
    sets = opened(tmp_path / "set")
    assert len(sets.train) + len(sets.val) == 11


def test_spellings_of_one_name_are_one_class(tmp_path: Path) -> None:
    composed, decomposed = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    write_class_folders(tmp_path / "train", {composed: 2, "thé": 2})
    write_class_folders(tmp_path / "val", {decomposed: 2, "thé": 1})
    sets = opened(tmp_path)
    assert sets.train.classes == sets.val.classes == (composed, "thé") and sets.val.labels.tolist() == [0, 0, 1]
    write_class_folders(tmp_path / "train", {decomposed: 1})
    assert "accents are encoded differently: merge them" in error(tmp_path)


def test_a_folder_with_the_name_of_a_known_set_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert open_image_sets(DataConfig(data="digits")).note is None
    write_class_folders(tmp_path / "digits", {"a": 2, "b": 2})
    assert "write ./digits for the folder" in (open_image_sets(DataConfig(data="digits")).note or "")
    assert open_image_sets(DataConfig(data="./digits")).train.classes == ("a", "b")


def test_a_split_that_is_not_validated_on_is_not_read(tmp_path: Path) -> None:
    write_class_folders(tmp_path / "train", {"a": 10, "b": 10})
    write_class_folders(tmp_path / "val", {"zebra": 2})
    sets = opened(tmp_path, validate_on="holdout")
    assert (len(sets.train), len(sets.val)) == (18, 2)


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
    assert "class 'b' has no image; add images, or remove the class" in error(tmp_path)
    write_class_folders(tmp_path / "set" / "train", {"a": 2, "b": 2})
    write_class_folders(tmp_path / "set" / "val", {"a": 2, "b": 0})
    assert f"class folder {tmp_path / 'set' / 'val' / 'b'} has no images" in error(tmp_path / "set")


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


def test_a_class_without_a_utf8_name_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    write_class_folders(tmp_path, {"a": 2})
    (tmp_path / "a").rename(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    assert r"caf\xe9 has no UTF-8 name: rename it" in error(tmp_path)


def test_a_file_without_a_utf8_name_can_be_told_and_written_down(tmp_path: Path) -> None:
    write_class_folders(tmp_path, {"a": 4, "b": 2})
    (tmp_path / "a" / "0.jpg").rename(os.fsdecode(os.fsencode(tmp_path / "a") + b"/caf\xe9.jpg"))
    told = [opened(tmp_path, check_images="off", holdout=0.3).train.describe(index) for index in range(3)]
    assert str(tmp_path / "a" / r"caf\xe9.jpg") in told and "".join(told).encode()


def test_a_broken_link_is_an_image_that_cannot_be_read(tmp_path: Path) -> None:
    write_class_folders(tmp_path, {"a": 6, "b": 6})
    (tmp_path / "a" / "-.jpg").symlink_to(tmp_path / "nothing")
    sets = opened(tmp_path)
    assert len(sets.train.fingerprint) == 64 and len(sets.train) + len(sets.val) == 13
    with pytest.raises(UserError, match="cannot read image .*/-.jpg: "):
        sets.train.image(0)


def test_any_class_name_can_be_sorted(tmp_path: Path) -> None:
    assert opened(write_class_folders(tmp_path / "set", {"5²": 2, "10": 2})).train.classes == ("10", "5²")


@pytest.mark.parametrize("share", [0.2, 0.5])
def test_a_share_of_a_set_keeps_every_class(tmp_path: Path, share: float) -> None:
    write_class_folders(tmp_path / "train", {"a": 10, "b": 2, "c": 1})
    write_class_folders(tmp_path / "val", {"a": 10, "b": 1})
    sets = opened(tmp_path, train_share=share, val_share=share)
    assert np.bincount(sets.train.labels).tolist() == [round(10 * share), 1, 1]
    assert np.bincount(sets.val.labels, minlength=3).tolist() == [round(10 * share), 1, 0]


def test_unknown_set(tmp_path: Path) -> None:
    message = error(tmp_path / "missing")
    assert "no image set" in message and "digits, cifar10, a folder" in message

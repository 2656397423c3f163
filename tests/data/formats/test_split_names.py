"""One rule for the names of splits."""

from __future__ import annotations

import pytest

from ray_learngene.data.formats.split_names import group_by_split, split_of, the_one
from ray_learngene.errors import UserError

NAMES = {
    "train": (
        *("train", "Training", "trainset", "train_images", "seg_train", "train-00001-of-00002.parquet", "train2014"),
        *("imagenet1k-train-0001.tar", "train/0000.parquet", "default/train/part-00000-c000.snappy.parquet"),
        *("split=train", "split=train/label=3/0.parquet", "train-clean-100.parquet", "train_a.parquet", "my.new.train"),
        "train-00000-of-00001-a09b74b3ef9c3b56.parquet",
    ),
    "val": ("val", "valid", "validation-0.parquet", "val_split", "Validation_Data", "subset=val/0.parquet"),
    "test": ("test", "testing", "testset", "test_set", "train/test_0001.parquet", "mnist-test.tar.gz"),
    None: (
        *("train_station", "test-tube", "val-badia", "training_day", "validation_hard", "strain", "latest", "trains"),
        *("value", "label=train/0.parquet", "0.parquet", "part-0.parquet", "station", "", "trained"),
    ),
}


@pytest.mark.parametrize(("split", "name"), [(split, name) for split, names in NAMES.items() for name in names])
def test_the_split_that_a_name_tells(split: str | None, name: str) -> None:
    assert split_of(name) == split


def test_groups() -> None:
    assert group_by_split(["train-0", "val-0", "test-0"], "x") == {"train": ["train-0"], "val": ["val-0"]}
    assert group_by_split(["train-0", "test-0"], "x") == {"train": ["train-0"], "test": ["test-0"]}
    assert group_by_split(["0", "1"], "x") == {"train": ["0", "1"]}
    with pytest.raises(UserError, match="is the name of train_station.parquet that of a split"):
        group_by_split(["train_station.parquet", "beaker.parquet"], "x")


def test_the_plainest_name_of_several() -> None:
    splits = {"seg_train": "train", "train": "train", "val_1": "val", "val_2": "val"}
    assert the_one("x", splits, "train") == "train" and the_one("x", splits, "test") is None
    with pytest.raises(UserError, match="x has val_1 and val_2: which one is val"):
        the_one("x", splits, "val")

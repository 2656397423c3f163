"""Parquet files: columns, labels, splits and the local cache."""

import os
import pickle
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ray_learngene.config import AugmentationConfig, DataConfig
from ray_learngene.data.check import check_images
from ray_learngene.data.convert import convert
from ray_learngene.data.formats import parquet_cache
from ray_learngene.data.image_set import ImageSets
from ray_learngene.data.loader import train_loader
from ray_learngene.data.open import open_image_sets
from ray_learngene.errors import UserError
from tests.data.image_files import encoded, photo, write_class_folders, write_parquet


def opened(path: Path | str, **options: Any) -> ImageSets:
    return open_image_sets(DataConfig(data=str(path), **options))


def error(path: Path, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        opened(path, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_integer_labels_in_one_file(tmp_path: Path) -> None:
    labels = [0, 1, 2] * 7
    sets = opened(write_parquet(tmp_path / "test.parquet", labels), holdout=0.2)
    assert sets.train.classes == ("0", "1", "2") and len(sets.train) == 18 and len(sets.val) == 3
    assert sets.note is not None and "held out 20 %" in sets.note
    assert sets.val.describe(0) == "test.parquet row 9"
    assert sets.val.encoded(0) == encoded(photo(9)) and sets.val.image(0).size == (24, 16)


def test_string_labels_and_split_names(tmp_path: Path) -> None:
    write_parquet(tmp_path / "data" / "train-00001-of-00002.parquet", ["b", "a"])
    write_parquet(tmp_path / "data" / "train-00000-of-00002.parquet", pa.array(["c", "b", "c"]).dictionary_encode())
    write_parquet(tmp_path / "data" / "validation-00000-of-00001.parquet", ["a", "c"])
    write_parquet(tmp_path / "data" / "test-00000-of-00001.parquet", ["a", "a", "a"])
    sets = opened(tmp_path)
    assert sets.train.classes == ("a", "b", "c") and sets.note is None
    assert sets.train.labels.tolist() == [2, 1, 2, 1, 0] and sets.val.labels.tolist() == [0, 2]
    assert sets.train.describe(3) == "data/train-00001-of-00002.parquet row 0"


def test_split_folders_and_test_as_validation(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train" / "0.parquet", [0, 1])
    write_parquet(tmp_path / "test" / "0.parquet", [1, 1, 0])
    assert len(opened(tmp_path).train) == 2 and len(opened(tmp_path).val) == 3


def test_split_column(tmp_path: Path) -> None:
    split = ["train", "validation", "train", "test", "validation", "train"]
    path = write_parquet(tmp_path / "all.parquet", ["b", "a", "a", "a", "b", "b"], split=split)
    sets = opened(path)
    assert sets.train.labels.tolist() == [1, 0, 1] and sets.val.labels.tolist() == [0, 1]
    assert sets.val.describe(1) == "all.parquet row 4"
    split[3] = "extra"
    write_parquet(path, ["b", "a", "a", "a", "b", "b"], split=split)
    assert "all.parquet row 3: split is 'extra'" in error(path)


def test_a_column_of_any_name_names_the_splits(tmp_path: Path) -> None:
    parts = ["train", "validation", "train", "test", "validation", "train"]
    write_parquet(tmp_path / "train-0.parquet", ["b", "a", "a", "a", "b", "b"], fold=parts, number=range(6))
    sets = opened(tmp_path, split_column="fold")
    assert sets.train.labels.tolist() == [1, 0, 1] and sets.val.labels.tolist() == [0, 1]
    for column in ("part", "number"):
        assert f"has no text column {column!r} but image, label, fold, number" in error(tmp_path, split_column=column)


def test_hive_folders_are_columns(tmp_path: Path) -> None:
    for split, count in (("train", 4), ("val", 2)):
        write_parquet(tmp_path / "named" / f"split={split}" / "part-0.parquet", [0, 1] * count)
        for label in (0, 1):
            path = tmp_path / "all" / f"split={split}" / f"label={label}" / "part-0.parquet"
            pq.write_table(pq.read_table(write_parquet(path, [7] * count)).drop(["label"]), path)
    for name in ("named", "all"):
        sets = opened(tmp_path / name)
        assert (len(sets.train), len(sets.val), sets.note, sets.train.classes) == (8, 4, None, ("0", "1"))
        assert sorted(sets.train.labels) == [0] * 4 + [1] * 4
    for label in ("caf%C3%A9", "tea"):
        path = tmp_path / "texts" / f"label={label}" / "0.parquet"
        pq.write_table(pq.read_table(write_parquet(path, [7] * 3)).drop(["label"]), path)
    assert opened(tmp_path / "texts").train.classes == ("café", "tea")


@pytest.mark.parametrize("nothing", [-1, None])
@pytest.mark.parametrize("named_by", ["files", "column"])
@pytest.mark.parametrize("texts", [False, True])
def test_a_test_split_without_labels_is_left_out(
    tmp_path: Path, nothing: int | None, named_by: str, texts: bool
) -> None:
    kind, blank = (pa.string(), None if nothing is None else "") if texts else (pa.int64(), nothing)
    splits = {"train": [0, 1] * 10, "test": [blank] * 4}

    def write(names: list[str]) -> None:
        rows = [(name, label) for name in names for label in splits[name]]
        for name in names if named_by == "files" else ["all"]:
            chosen = [row for row in rows if name in ("all", row[0])]
            labels = pa.array([str(label) if texts and row != "test" else label for row, label in chosen], kind)
            write_parquet(tmp_path / f"{name}.parquet", labels, split=[row for row, _ in chosen])

    write(["train", "test"])
    sets = opened(tmp_path)
    assert (len(sets.train), len(sets.val), sets.train.classes) == (18, 2, ("0", "1"))
    assert f"the test split of {tmp_path} has no labels: left out" in (sets.note or "")
    assert len(opened(tmp_path, validate_on="holdout").train) in (16, 18)
    splits["val"] = [1, 0]
    write(["train", "test", "val"])
    assert (len(opened(tmp_path).train), len(opened(tmp_path).val), opened(tmp_path).note) == (20, 2, None)
    assert len(opened(tmp_path, validate_on="holdout").val) == 2


def test_columns_of_views(tmp_path: Path) -> None:
    images = pa.array([encoded(photo(row)) for row in range(20)], pa.binary_view())
    table = pa.table({"image": images, "label": pa.array(["a", "b"] * 10, pa.string_view())})
    pq.write_table(table, tmp_path / "x.parquet")
    sets = opened(tmp_path / "x.parquet")
    assert sets.train.classes == ("a", "b") and sets.train.encoded(0) == encoded(photo(0))
    structs = pa.StructArray.from_arrays([images, pa.array(["x"] * 20, pa.string_view())], ["bytes", "path"])
    pq.write_table(pa.table({"image": structs, "label": [0, 1] * 10}), tmp_path / "y.parquet")
    assert opened(tmp_path / "y.parquet").train.encoded(0) == encoded(photo(0))


def test_spellings_of_one_name_are_one_class(tmp_path: Path) -> None:
    composed, decomposed = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    write_parquet(tmp_path / "train.parquet", [composed, "thé", decomposed])
    write_parquet(tmp_path / "val.parquet", ["thé", decomposed])
    sets = opened(tmp_path)
    assert len(sets.train.classes) == 2
    assert sets.train.labels.tolist() == [0, 1, 0] and sets.val.labels.tolist() == [1, 0]


def test_hugging_face_columns_and_class_names(tmp_path: Path) -> None:
    images = [{"bytes": encoded(photo(row), "PNG"), "path": f"{row}.png"} for row in range(6)]
    features = {"features": {"fine": {"names": ["zebra", "ant"], "_type": "ClassLabel"}}}
    table = {"img": images, "fine": [1, 0, 1, 0, 1, 1]}
    write_parquet(tmp_path / "train.parquet", [0] * 6, metadata={"huggingface": {"info": features}}, **table)
    sets = opened(tmp_path / "train.parquet", image_column="img", label_column="fine")
    assert sets.train.classes == ("zebra", "ant")
    assert sorted([*sets.train.labels, *sets.val.labels]) == [0, 0, 1, 1, 1, 1]
    assert (np.asarray(sets.train.image(0)) == np.asarray(photo(0))).all()


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 1, None, 1], "x.parquet row 2: no label"),
        (["a", "b", None, "b"], "x.parquet row 2: no label"),
        ([0, 1, 0, -1], "x.parquet row 3: label -1 is out of range"),
        ([0, 10**12, 0, 1], "x.parquet row 1: label 1000000000000 is out of range"),
        ([0, 2, 0, 2], "class '1' has no image"),
        ([0.5, 1.0, 2.0, 0.0], "column 'label' is double, not class index or name"),
    ],
)
def test_bad_labels(tmp_path: Path, labels: list[Any], message: str) -> None:
    assert message in error(write_parquet(tmp_path / "x.parquet", labels))


def test_bad_columns_and_files(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "x.parquet", [0, 1], [encoded(photo()), None])
    assert "x.parquet row 1: no image bytes" in error(path)
    assert "has no column 'picture' but image, label: choose one with --image-column" in error(
        path, image_column="picture"
    )
    assert "column 'label' is int64, not encoded images" in error(path, image_column="label", label_column="label")
    assert "have no rows" in error(
        write_parquet(tmp_path / "x.parquet", pa.array([], pa.int64()), pa.array([], pa.binary()))
    )
    path.write_bytes(b"no Parquet at all")
    assert "x.parquet" in error(path)
    assert "no *.parquet files" in error(tmp_path / "missing.parquet")


def test_odd_metadata_and_columns(tmp_path: Path) -> None:
    for number, odd in enumerate((["no", "object"], {"info": None}, {"info": {"features": {"label": ["names"]}}})):
        path = write_parquet(tmp_path / f"{number}.parquet", [0, 1] * 10, metadata={"huggingface": odd})
        assert opened(path).train.classes == ("0", "1")
    table = pq.read_table(path)
    pq.write_table(table.append_column("label", table["label"]), tmp_path / "twice.parquet")
    assert "has two columns 'label': rename one" in error(tmp_path / "twice.parquet")


def test_a_folder_as_the_hub_lays_it_out(tmp_path: Path) -> None:
    write_parquet(tmp_path / "default" / "train" / "0000.parquet", [0, 1] * 3)
    write_parquet(tmp_path / "default" / "validation" / "0000.parquet", [0, 1])
    sets = opened(tmp_path)
    assert (len(sets.train), len(sets.val)) == (6, 2)


def test_tables_among_images_are_not_the_images(tmp_path: Path) -> None:
    write_class_folders(tmp_path / "train", {"a": 3, "b": 3})
    write_parquet(tmp_path / "train" / "a" / "meta.parquet", [0])
    write_parquet(tmp_path / ".cache" / "train" / "x.parquet", [0])
    assert opened(tmp_path).train.classes == ("a", "b")


def test_bad_splits(tmp_path: Path) -> None:
    write_parquet(tmp_path / "val.parquet", ["a", "b"])
    assert "only val files; add train-... files" in error(tmp_path)
    write_parquet(tmp_path / "train.parquet", ["a", "a"])
    assert "class 'b' is in the validation split only" in error(tmp_path)
    write_parquet(tmp_path / "train.parquet", [0, 1])
    assert "labels are class names in one split and indices in the other" in error(tmp_path)
    write_parquet(tmp_path / "more.parquet", ["a"])
    assert "more.parquet belongs to no split but others do" in error(tmp_path)


def test_shards_of_different_types(tmp_path: Path) -> None:
    write_parquet(tmp_path / "0.parquet", [0, 1])
    write_parquet(tmp_path / "1.parquet", ["0", "1"])
    assert "1.parquet: columns have other types than in 0.parquet" in error(tmp_path)


def test_cache_is_written_once_and_again_for_new_content(tmp_path: Path, cache: Path) -> None:
    path = write_parquet(tmp_path / "x.parquet", [0, 1] * 300)
    sets = opened(path)
    (first,) = cache.glob("*.arrow")
    written = first.stat().st_ino
    assert opened(path).train.fingerprint == sets.train.fingerprint and first.stat().st_ino == written
    assert sets.train.image(500).size == (24, 16)
    write_parquet(path, [1, 0] * 200)
    assert len(opened(path).train) == 360 and len(list(cache.glob("*.arrow"))) == 2
    assert not list(cache.glob("*.partial"))


def test_the_cache_keeps_its_limit(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    image = encoded(Image.fromarray(pixels), "PNG")
    paths = [write_parquet(tmp_path / f"{n}.parquet", [0, 1] * 100, [image] * 200) for n in range(4)]
    monkeypatch.setattr(parquet_cache, "_opened", set())
    sizes = []
    for number, path in enumerate(paths[:3]):
        opened(path)
        (new,) = set(cache.glob("*.arrow")) - {each for each, _ in sizes}
        os.utime(new, ns=(number, number))
        sizes.append((new, new.stat().st_size))
    opened(paths[0])  # the first one is used again
    parquet_cache._opened.clear()  # as in another process
    limit = 3.5 * sizes[0][1] / 1e9
    opened(paths[3], cache_gb=limit)
    left = set(cache.glob("*.arrow"))
    assert sizes[1][0] not in left and {sizes[0][0], sizes[2][0]} < left and len(left) == 3
    parquet_cache._opened.update(left)  # in use by this process: they stay
    assert "do not fit into --cache-gb" in error(paths[1], cache_gb=limit)
    assert set(cache.glob("*.arrow")) == left and not list(cache.glob("*.partial"))


def test_a_failed_read_leaves_no_cache(tmp_path: Path, cache: Path) -> None:
    error(write_parquet(tmp_path / "x.parquet", [0] * 300 + [None]))
    assert [file.suffix for file in cache.iterdir()] == [".lock"]


def test_pickles_to_an_address_and_reads_again_where_the_cache_is_missing(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_parquet(tmp_path / "set" / "x.parquet", [0, 1] * 50)
    sets = opened("set")
    data = pickle.dumps(sets)
    assert len(data) < 10_000
    for file in cache.iterdir():
        file.unlink()
    monkeypatch.chdir("/")
    again = pickle.loads(data)
    assert again.train.encoded(3) == sets.train.encoded(3) and again.train.fingerprint == sets.train.fingerprint
    write_parquet(tmp_path / "set" / "x.parquet", [0, 1] * 40)
    for file in cache.glob("*.arrow"):
        file.unlink()
    with pytest.raises(UserError, match="80 rows here and 100 where the run started"):
        pickle.loads(data)


@pytest.mark.parametrize(("kind", "ending"), [("", ".parquet"), ("wds/", ".tar")])
def test_a_pipe_or_a_device_among_the_shards_is_named(kind: str, ending: str, tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    if not kind:
        write_parquet(tmp_path / "shards" / "train-0.parquet", [0, 1] * 5)
    pipe = tmp_path / "shards" / f"train-1{ending}"
    os.mkfifo(pipe)
    for data in (f"{kind}{pipe.parent}", f"{kind}{pipe}"):
        with pytest.raises(UserError, match=f"train-1{ending} is a pipe or a device, not a file: remove it"):
            convert(DataConfig(data=data), str(tmp_path / "out"))
    pipe.unlink()
    pipe.symlink_to("/dev/zero")
    with pytest.raises(UserError, match="is a pipe or a device"):
        convert(DataConfig(data=f"{kind}{pipe.parent}"), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("kind", "ending"), [("", ".parquet"), ("wds/", ".tar")])
def test_a_link_to_nothing_among_the_shards_is_named(kind: str, ending: str, tmp_path: Path) -> None:
    write_parquet(tmp_path / "shards" / "train-0.parquet", [0, 1] * 5)
    (tmp_path / "shards" / f"train-1{ending}").symlink_to("nowhere")
    with pytest.raises(UserError, match=f"train-1{ending} links to a file that is not there"):
        convert(DataConfig(data=f"{kind}{tmp_path / 'shards'}"), str(tmp_path / "out"))


def test_shards_that_links_lead_back_to_are_read_once(tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    write_parquet(shards / "train-0.parquet", [0, 1] * 5)
    elsewhere = write_parquet(tmp_path / "elsewhere" / "train-1.parquet", [0, 1] * 5)
    for inner in ("a", "b"):  # each leads round in a circle, and two of them would be read 2^40 times
        (shards / inner).mkdir()
        (shards / inner / "up").symlink_to("..")
        (shards / inner / "around").symlink_to(shards)
    (shards / "linked").symlink_to(elsewhere.parent)
    sets = opened(shards)
    assert len(sets.train) + len(sets.val) == 20


def test_a_folder_of_tar_files_is_told_how_to_read_them(tmp_path: Path) -> None:
    (tmp_path / "train-0.tar").touch()
    assert f"data convert --data wds/{tmp_path}" in error(tmp_path)


def test_loader_processes_read_the_mapped_file(tmp_path: Path) -> None:
    sets = opened(write_parquet(tmp_path / "x.parquet", [0, 1] * 20))
    options: dict[str, Any] = {"seed": 0, "batch_size": 8, "epochs": 1}
    loaders = [
        train_loader(sets.train, 8, (0.5,) * 3, (0.5,) * 3, AugmentationConfig(), workers=workers, **options)
        for workers in (0, 2)
    ]
    for (images, labels), (other_images, other_labels) in zip(*loaders, strict=True):
        assert images.equal(other_images) and labels.equal(other_labels)


def test_bucket(s3_env: Callable[[], str], tmp_path: Path) -> None:
    from ray_learngene.io.filesystems import filesystem

    bucket = s3_env()
    for name, labels in (("train-0", ["a", "b", "a"]), ("val-0", ["b"])):
        target, path = filesystem(f"{bucket}/images/{name}.parquet")
        with target.open_output_stream(path) as stream:
            stream.write(write_parquet(tmp_path / "local.parquet", labels).read_bytes())
    sets = opened(f"{bucket}/images")
    assert sets.train.labels.tolist() == [0, 1, 0] and sets.val.labels.tolist() == [1]
    check_images(sets.train, "full")
    assert len(opened(f"{bucket}/images/train-0.parquet").train) == 2
    with pytest.raises(UserError, match=r"no \*\.parquet files"):
        opened(f"{bucket}/nothing")


def test_indices_that_stand_for_other_classes_are_refused(tmp_path: Path) -> None:
    def write(name: str, labels: list[int], *classes: str) -> None:
        features = {"huggingface": {"info": {"features": {"label": {"names": classes}}}}}
        write_parquet(tmp_path / name, labels, metadata=features)

    write("a/train.parquet", [0, 1] * 3, "cat", "dog")
    write("a/val.parquet", [0, 1], "dog", "cat")
    assert "class names of val differ from those of train" in error(tmp_path / "a")
    write("a/val.parquet", [0, 1], "cat", "dog")
    assert opened(tmp_path / "a").val.classes == ("cat", "dog")
    write("b/0.parquet", [0, 1] * 3, "cat", "dog")
    write("b/1.parquet", [0, 1] * 3, "dog", "cat")
    assert "1.parquet: class names differ from those of 0.parquet" in error(tmp_path / "b")


@pytest.mark.parametrize("odd", [{"a": 1}, [1, 2], "ab", None, [["a"], ["b"]]])
@pytest.mark.parametrize("labels", [[0, 1] * 10, ["a", "b"] * 10])
def test_class_names_that_are_no_texts_are_none(odd: Any, labels: list[Any], tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "x.parquet", labels, metadata={"ray_learngene.classes": odd})
    assert opened(path).train.classes == tuple(map(str, labels[:2]))


def test_a_damaged_cache_is_one_line(tmp_path: Path, cache: Path) -> None:
    path = write_parquet(tmp_path / "x.parquet", [0, 1] * 10)
    opened(path)
    (copy,) = cache.rglob("*.arrow")
    copy.write_bytes(copy.read_bytes()[:100])
    assert f"{copy} is damaged: delete it" in error(path)

"""Conversion to Parquet shards and back."""

import io
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ray_learngene.cli.main import main
from ray_learngene.config import DataConfig
from ray_learngene.data.convert import convert
from ray_learngene.data.open import open_image_sets
from ray_learngene.errors import UserError
from tests.data.image_files import encoded, photo, write_class_folders


def test_digits_come_back_pixel_by_pixel(tmp_path: Path, store_uri: str) -> None:
    source = open_image_sets(DataConfig(data="digits"))
    facts = convert(DataConfig(data="digits"), store_uri, short_side=None)
    assert facts["train"] == len(source.train) and facts["val"] == len(source.val) and facts["skipped"] == []
    result = open_image_sets(DataConfig(data=store_uri))
    assert result.note is None
    for old, new in ((source.train, result.train), (source.val, result.val)):
        assert new.classes == old.classes and (new.labels == old.labels).all()
        assert all((np.asarray(new.image(i)) == np.asarray(old.image(i))).all() for i in range(0, len(old), 97))


def test_class_order_survives(tmp_path: Path) -> None:
    write_class_folders(tmp_path / "set" / "train", {"b": 3, "a": 2})
    write_class_folders(tmp_path / "set" / "val", {"a": 1})
    convert(DataConfig(data=str(tmp_path / "set")), str(tmp_path / "one"))
    table = pq.read_table(tmp_path / "one" / "train-00000.parquet")
    assert table.column_names == ["image", "label", "name"] and table["label"].to_pylist() == ["a", "a", "b", "b", "b"]
    assert open_image_sets(DataConfig(data=str(tmp_path / "one"))).val.classes == ("a", "b")
    reordered = table.replace_schema_metadata({"ray_learngene.classes": '["b", "a"]'})
    pq.write_table(reordered, tmp_path / "one" / "train-00000.parquet")
    assert open_image_sets(DataConfig(data=str(tmp_path / "one"))).train.labels.tolist() == [1, 1, 0, 0, 0]


def test_only_larger_images_are_resized_and_others_keep_their_bytes(tmp_path: Path) -> None:
    root = write_class_folders(tmp_path / "set", {"a": 3})  # one class: for a distillation without labels
    photo(1, (90, 40)).save(root / "a" / "1.jpg")
    photo(2, (40, 90)).convert("CMYK").save(root / "a" / "2.jpg")
    photo(3, (20, 90)).convert("L").save(root / "a" / "3.png")
    originals = [
        (root / "a" / f"{index}").with_suffix(suffix).read_bytes() for index, suffix in ((0, ".jpg"), (3, ".png"))
    ]
    convert(DataConfig(data=str(root), holdout=0.01), str(tmp_path / "out"), short_side=32)
    rows = pq.read_table(tmp_path / "out").to_pylist()
    images = {Path(row["name"]).stem: row["image"] for row in rows}
    assert [images["0"], images["3"]] == originals
    sizes = {name: Image.open(io.BytesIO(data)).size for name, data in images.items()}
    assert sizes == {"0": (24, 16), "1": (72, 32), "2": (32, 72), "3": (20, 90)}
    assert Image.open(io.BytesIO(images["2"])).mode == "RGB" and Image.open(io.BytesIO(images["2"])).format == "JPEG"


def test_many_shards(tmp_path: Path) -> None:
    facts = convert(DataConfig(data="digits"), str(tmp_path / "out"), short_side=None, shard_bytes=20_000)
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert facts["shards"] == len(names) > 5
    assert names[0] == "train-00000.parquet" and "val-00000.parquet" in names and not any("partial" in n for n in names)
    assert len(open_image_sets(DataConfig(data=str(tmp_path / "out"))).train) == facts["train"]


def test_target_must_be_empty(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"is not empty \(it has notes\.txt\)"):
        convert(DataConfig(data="digits"), str(tmp_path / "out"))
    with pytest.raises(UserError, match="is a file"):
        convert(DataConfig(data="digits"), str(tmp_path / "out" / "notes.txt"))


def test_an_unreadable_image_stops_and_leaves_nothing_or_is_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_class_folders(tmp_path / "set", {"a": 8, "b": 8})
    damaged, empty, broken = root / "b" / "5.jpg", root / "a" / "6.jpg", root / "a" / "7.jpg"
    damaged.write_bytes(damaged.read_bytes()[:-100])
    config = DataConfig(data=str(root))
    with pytest.raises(UserError, match=f"cannot read image {damaged}"):
        convert(config, str(tmp_path / "out"), shard_bytes=1000)
    assert list((tmp_path / "out").iterdir()) == []
    config = config.model_copy(update={"unreadable": "skip"})
    facts = convert(config, str(tmp_path / "out"))
    shutil.rmtree(tmp_path / "out")
    words = ["data", "convert", "--data", str(root), "--out", str(tmp_path / "out")]
    assert main(words) == 2 and "or leave it out: --unreadable skip" in capsys.readouterr().err
    assert main([*words, "--unreadable", "skip"]) == 0 and "skipped 1 unreadable image" in capsys.readouterr().out
    assert facts["train"] + facts["val"] == 15 and [str(damaged) in line for line in facts["skipped"]] == [True]
    empty.write_bytes(b"")
    broken.unlink()
    broken.symlink_to(tmp_path / "nothing")
    shutil.rmtree(tmp_path / "out")
    facts = convert(config, str(tmp_path / "out"))
    assert facts["train"] + facts["val"] == 13 and len(facts["skipped"]) == 3
    assert all(any(str(path) in line for line in facts["skipped"]) for path in (damaged, empty, broken))


def test_an_image_too_tall_for_a_jpeg_is_left_out(tmp_path: Path) -> None:
    root = write_class_folders(tmp_path / "set", {"a": 8, "b": 8})
    Image.new("L", (2, 140_000)).save(root / "a" / "0.jpg", "PNG")
    facts = convert(DataConfig(data=str(root), unreadable="skip"), str(tmp_path / "out"), short_side=1)
    assert [str(root / "a" / "0.jpg") in line for line in facts["skipped"]] == [True]


def write_shard(path: Path, samples: dict[str, bytes], encoding: str = "utf-8") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT, encoding=encoding) as tar:
        for name, data in samples.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def test_webdataset(tmp_path: Path) -> None:
    photos = [encoded(photo(index)) for index in range(6)]
    for split, chosen in (("train", range(4)), ("validation", range(4, 6))):
        samples = {}
        for index in chosen:
            samples |= {f"{index}.jpg": photos[index], f"{index}.cls": str(index % 2).encode(), f"{index}.json": b"{}"}
        write_shard(tmp_path / "wds" / f"set-{split}-0000.tar", samples)
    facts = convert(DataConfig(data=f"wds/{tmp_path / 'wds'}"), str(tmp_path / "out"))
    assert (facts["train"], facts["val"]) == (4, 2)
    sets = open_image_sets(DataConfig(data=str(tmp_path / "out")))
    assert sets.train.classes == ("0", "1") and sets.train.labels.tolist() == [0, 1, 0, 1]
    assert [sets.train.encoded(index) for index in range(4)] == photos[:4]


def test_webdataset_reads_every_ending_and_no_system_file(tmp_path: Path) -> None:
    endings = {"0": ("jfif", "JPEG"), "1": ("AVIF", "AVIF"), "2": ("tif", "TIFF"), "3": ("gif", "GIF")}
    samples = {"._0.jfif": b"junk", "__MACOSX/._0.jfif": b"junk", "./@eaDir/0.jpg": b"junk"}
    for key, (ending, kind) in endings.items():
        samples |= {f"./{key}.{ending}": encoded(photo(int(key)), kind), f"./{key}.cls": key.encode()}
    write_shard(tmp_path / "wds" / "test-0.tar", samples)
    assert convert(DataConfig(data=f"wds/{tmp_path / 'wds' / 'test-0.tar'}"), str(tmp_path / "out"))["train"] == 4


def test_a_test_split_of_a_webdataset_may_have_no_labels(tmp_path: Path) -> None:
    for split, labels in {"train": (b"0", b"1"), "test": (b"-1", None)}.items():
        samples = {}
        for number, label in enumerate(labels):
            samples |= {f"{number}.jpg": encoded(photo(number))} | ({f"{number}.cls": label} if label else {})
        write_shard(tmp_path / "wds" / f"{split}-0.tar", samples)
    facts = convert(DataConfig(data=f"wds/{tmp_path / 'wds'}"), str(tmp_path / "out"))
    assert (facts["train"], facts["val"]) == (2, 0) and "left out 2 images of the test split" in facts["note"]


def test_webdataset_errors(tmp_path: Path) -> None:
    def error(samples: dict[str, bytes] | None) -> str:
        if samples is not None:
            write_shard(tmp_path / "wds" / "0.tar", samples)
        with pytest.raises(UserError) as caught:
            convert(DataConfig(data=f"wds/{tmp_path / 'wds'}"), str(tmp_path / "out"))
        return str(caught.value)

    assert "no *.tar files" in error(None)
    assert "0.tar:7 has no class index" in error({"7.jpg": encoded(photo())})
    assert "0.tar:7 has no image" in error({"7.cls": b"1"})
    assert "is no class index" in error({"7.jpg": encoded(photo()), "7.cls": b"9" * 30})
    (tmp_path / "wds" / "0.tar").write_bytes(b"no tar file, " * 100)
    assert "cannot be read as a tar file" in error(None)


def test_names_that_are_no_utf8_are_written_out(tmp_path: Path) -> None:
    samples = {"é.jpg": encoded(photo()), "é.cls": b"0", "f.jpg": encoded(photo(1)), "f.cls": b"1"}
    write_shard(tmp_path / "w" / "train.tar", samples, "latin-1")
    convert(DataConfig(data=f"wds/{tmp_path / 'w'}"), str(tmp_path / "out"))
    assert pq.read_table(tmp_path / "out")["name"][0].as_py().endswith("train.tar:\\xe9")

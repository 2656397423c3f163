"""`learngene data check` lists all findings at once, and counts images as training and conversion do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from ray_learngene.cli.main import main
from ray_learngene.config import CheckConfig, ConvertConfig
from ray_learngene.data.convert import convert
from ray_learngene.data.findings import inspect_image_sets
from ray_learngene.data.pipeline import checked_image_sets
from tests.data.image_files import photo, write_class_folders, write_parquet


def odd_set(root: Path) -> Path:
    """Return a folder with one of each finding."""
    train, val = root / "train", root / "val"
    write_class_folders(train, {"a": 6, "b": 5, "lone": 1, "none": 0})
    write_class_folders(val, {"a": 2, "b": 2})
    for place in (val / "a" / "0.jpg", train / "b" / "copy.jpg"):
        place.write_bytes((train / "a" / "0.jpg").read_bytes())
    photo(50).save(val / "a" / "1.jpg")
    photo(51).save(val / "b" / "0.jpg")
    photo(52).save(val / "b" / "1.jpg")
    (train / "a" / "1.jpg").write_bytes(b"no image")
    (train / "a" / "2.jpg").write_bytes((train / "a" / "2.jpg").read_bytes()[:-100])
    photo(60, (4, 30)).save(train / "a" / "narrow.png")
    photo(61).convert("CMYK").save(train / "b" / "print.jpg")
    photo(62).convert("RGBA").save(train / "b" / "clear.png")
    photo(63).save(train / "b" / "moving.gif", save_all=True, append_images=[photo(64)])
    Image.new("1", (7100, 7100)).save(train / "b" / "huge.png")
    photo(65).save(train / "stray.jpg")
    (train / "a" / "x.heic").write_text("x")
    write_class_folders(val, {"zebra": 1})
    return root


def test_all_findings_are_listed_at_once(tmp_path: Path) -> None:
    inspection = inspect_image_sets(CheckConfig(data=str(odd_set(tmp_path / "set"))))
    found = {(finding.kind, finding.split): finding for finding in inspection.findings}
    errors = [text for finding in inspection.errors for text in finding.examples]
    assert {finding.kind for finding in inspection.errors} == {"classes", "unreadable"}
    for text in ("stray.jpg is outside any class folder", "class 'zebra' is in", "class 'none' has no image"):
        assert any(text in each for each in errors), text
    expected = {
        ("unreadable", "training"): 2,
        ("tiny, a side below 8 px", "training"): 1,
        ("huge, above 50 megapixels", "training"): 1,
        ("of several frames; the first is used", "training"): 1,
        ("transparent; that is dropped", "training"): 1,
        ("mode CMYK; converted to RGB", "training"): 1,
        ("mode 1; converted to RGB", "training"): 1,
        ("also in the training split", "validation"): 1,
        ("also in another class", "training"): 1,
        ("class of one image", "training"): 1,
    }
    assert {key: found[key].count for key in expected} == expected
    assert "a/0.jpg" in found["also in the training split", "validation"].examples[0]
    assert any("not read in" in note and "x.heic" in note for note in inspection.notes)
    assert (inspection.training.images, inspection.training.unreadable) == (16, 2)


def test_convert_and_training_count_as_the_check_does(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_class_folders(tmp_path / "set", {"a": 20, "b": 20})
    for number in (3, 4, 5):
        (root / "a" / f"{number}.jpg").write_bytes(b"no image")
    options = {"data": str(root), "unreadable": "skip"}
    inspection = inspect_image_sets(CheckConfig(**options))
    assert inspection.errors == [] and inspection.training.images + inspection.validation.images == 37
    written = convert(ConvertConfig(out=str(tmp_path / "out"), **options), str(tmp_path / "out"))
    assert (written["train"], written["val"]) == (inspection.training.images, inspection.validation.images)
    sets = checked_image_sets(CheckConfig(**options))
    assert f"going on with {inspection.training.images} of {len(sets.train)} images" in capsys.readouterr().err


@pytest.mark.parametrize("odd", ["a float image", "a 32-bit image"])
def test_a_check_of_headers_passes_nothing_whose_mode_tells_that_training_refuses_it(tmp_path: Path, odd: str) -> None:
    root = write_class_folders(tmp_path / "set", {"a": 20, "b": 20})
    mode, value = ("F", 0.5) if odd == "a float image" else ("I", 70_000)
    Image.new(mode, (9, 9), value).save(root / "a" / "x.tif")
    for check in ("headers", "full"):
        (error,) = inspect_image_sets(CheckConfig(data=str(root), check_images=check)).errors
        assert error.kind == "unreadable" and "x.tif" in error.examples[0]


def test_the_command_prints_a_table_or_json_and_ends_with_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = odd_set(tmp_path / "set")
    assert main(["data", "check", "--data", str(root)]) == 2
    out, err = capsys.readouterr()
    assert "training: 16 images, 4 classes of 0 to 10 images, 2 unreadable" in out and "for example" in out
    assert len(err.splitlines()) == 1 and "cannot be trained on as it is: " in err and "unreadable (2)" in err
    assert main(["data", "check", "--data", str(root), "--json"]) == 2
    shown = json.loads(capsys.readouterr().out)
    assert shown["training"]["images"] == 16 and {"level", "kind", "split", "count", "examples"} == set(
        shown["findings"][0]
    )
    assert main(["data", "check", "--data", "digits", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["findings"] == []


def test_a_table_is_checked_like_a_folder(tmp_path: Path) -> None:
    write_parquet(tmp_path / "x.parquet", [0, 1] * 10, [b"no image"] * 20)
    inspection = inspect_image_sets(CheckConfig(data=str(tmp_path / "x.parquet")))
    assert sum(error.count for error in inspection.errors if error.kind == "unreadable") == 20
    assert any(error.kind == "class without a readable image" for error in inspection.errors)

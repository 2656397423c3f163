"""Image sets at a URI of any scheme: Parquet files, folders of images, tar files, and shards that are written there."""

from __future__ import annotations

import io
import re
import tarfile
from pathlib import Path

import pytest

from ray_learngene.config import DataConfig
from ray_learngene.data.check import check_images
from ray_learngene.data.convert import convert
from ray_learngene.data.open import open_image_sets
from ray_learngene.errors import UserError
from ray_learngene.io.objects import Objects
from tests.data.image_files import encoded, photo, write_class_folders, write_parquet


@pytest.fixture
def there(store_uri: str, tmp_path: Path) -> Objects:
    """A place with images in folders, in Parquet files and in a tar file."""
    objects = Objects(store_uri)
    for split, count in (("train", 3), ("val", 1)):
        write_class_folders(tmp_path / "folders" / split, {"cat": count, "dog": count})
        write_parquet(tmp_path / "tables" / f"{split}-0.parquet", [0, 1] * count)
    for path in sorted(tmp_path.glob("[ft]*/**/*.*")):
        objects.upload(path, path.relative_to(tmp_path).as_posix())
    objects.put("folders/train/README.txt", b"photographs")
    objects.put("folders/train/cat/.DS_Store", b"x")
    with tarfile.open(fileobj=(shard := io.BytesIO()), mode="w") as tar:
        for name, data in (
            ("0.jpg", encoded(photo())),
            ("0.cls", b"1"),
            ("1.png", encoded(photo(1), "PNG")),
            ("1.cls", b"0"),
        ):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    for name in ("train", "val"):
        objects.put(f"tars/{name}-0.tar", shard.getvalue())
    return objects


def test_parquet_files_folders_and_tar_files_are_read(there: Objects, tmp_path: Path, cache: Path) -> None:
    sets = open_image_sets(DataConfig(data=there.uri_of("tables")))
    assert (sets.train.labels.tolist(), sets.val.labels.tolist()) == ([0, 1] * 3, [0, 1])
    check_images(sets.train, "full")

    sets = open_image_sets(DataConfig(data=there.uri_of("folders")))
    assert (sets.train.classes, sets.train.labels.tolist()) == (("cat", "dog"), [0, 0, 0, 1, 1, 1])
    assert [sets.val.encoded(index) for index in range(2)] == [
        (tmp_path / "folders" / "val" / name / "0.jpg").read_bytes() for name in ("cat", "dog")
    ]
    assert sets.train.describe(0) == there.uri_of("folders/train/cat/0.jpg")
    if not there.is_local:
        assert len(list(cache.glob("*.images"))) == 1 and "1 .txt (train/README.txt)" in (sets.note or "")

    for split in ("train", "val"):
        there.put(f"high/set/{split}/cat/0.jpg", encoded(photo()))
    with pytest.raises(UserError, match=re.escape(f"give {there.uri_of('high/set')}")):  # and not the local copy
        open_image_sets(DataConfig(data=there.uri_of("high")))

    made = convert(DataConfig(data=f"wds/{there.uri_of('tars')}"), there.uri_of("made"))
    assert (made["train"], made["shards"]) == (2, 2)
    sets = open_image_sets(DataConfig(data=there.uri_of("made")))
    assert (sets.train.labels.tolist(), sets.val.labels.tolist()) == ([1, 0], [1, 0])
    with pytest.raises(UserError, match="no \\*.parquet files and no images at|no image set|are no images"):
        open_image_sets(DataConfig(data=there.uri_of("nothing")))


def test_a_copy_of_a_folder_is_made_once_and_again_when_an_image_changes(there: Objects, cache: Path) -> None:
    if there.is_local:
        pytest.skip("a local folder needs no copy")
    config = DataConfig(data=there.uri_of("folders"))
    open_image_sets(config)
    (copy,) = cache.glob("*.images")
    (copy / "train" / "cat" / "0.jpg").write_bytes(b"still there")
    assert open_image_sets(config).train.encoded(0) == b"still there"
    changed = encoded(photo(7))
    there.put("folders/train/cat/0.jpg", changed)
    assert open_image_sets(config).train.encoded(0) == changed
    with pytest.raises(UserError, match="do not fit into --cache-gb"):
        there.put("folders/train/cat/0.jpg", changed + b"\0")
        open_image_sets(DataConfig(data=there.uri_of("folders"), cache_gb=1e-6))

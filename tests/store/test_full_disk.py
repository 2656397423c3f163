"""A full local disk: one line, nothing half written, and the same command works after space is made."""

import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas
import pyarrow
import pytest

from ray_learngene.errors import UserError
from ray_learngene.store import download
from ray_learngene.store.store import Store
from tests.store.folders import contents, make_folder, one_line

FILES = {"a.safetensors": b"a" * 700_000, "b.safetensors": b"b" * 700_000, "config.json": b"{}"}


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Makes a disk of its own, or changes its size: a tmpfs."""
    place = tmp_path / "disk"
    place.mkdir()

    def resize(size: str) -> Path:
        options = f"{'remount,' if place.is_mount() else ''}size={size}"
        ran = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", place], capture_output=True, text=True)
        if ran.returncode:
            pytest.skip(f"no disk of its own can be mounted here: {ran.stderr.strip()}")
        return place

    yield resize
    if place.is_mount():
        subprocess.run(["umount", place], check=True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "folder", FILES)


def test_publishing_into_a_full_store(disk: Callable[[str], Path], folder: Path, tmp_path: Path) -> None:
    store = Store(str(disk("1m")))
    with pytest.raises(UserError, match="the disk of .* is full: free space and run the command again") as error:
        store.publish("learngene", "a", folder, {})
    one_line(error)
    assert store.objects.find("learngenes") == store.objects.find("index") == []
    assert [path for path in store.objects.find("") if path != "store.json"] == []
    disk("8m")
    store.publish("learngene", "a", folder, {})
    assert contents(store.download("learngene", "a", tmp_path / "out")) == FILES


def test_results_on_a_full_disk(disk: Callable[[str], Path]) -> None:
    root = disk("1m")
    store = Store(str(root))
    table = pyarrow.Table.from_pandas(pandas.DataFrame({"top1": range(40_000)}), preserve_index=False)
    store.write_table("sweeps/s/results.parquet", table.slice(0, 10))
    (root / "else").write_bytes(b"x" * 900_000)
    with pytest.raises(UserError, match="is full") as error:
        store.write_table("sweeps/s/results.parquet", table)
    one_line(error)
    assert store.read_table("sweeps/s/results.parquet") == table.slice(0, 10)
    assert store.objects.find("sweeps") == ["sweeps/s/results.parquet"]
    disk("8m")
    store.write_table("sweeps/s/results.parquet", table)
    assert store.read_table("sweeps/s/results.parquet") == table


@pytest.mark.parametrize("known", [True, False])
def test_pulling_to_a_full_disk(
    disk: Callable[[str], Path], folder: Path, tmp_path: Path, known: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether the space is missing before, or is taken by another process meanwhile."""
    store = Store(str(tmp_path / "store"))
    store.publish("learngene", "a", folder, {})
    out = disk("1m") / "out"
    if not known:
        usage = shutil.disk_usage(tmp_path)
        monkeypatch.setattr(download.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(UserError, match="needs 1.4 MB more, and the disk of" if known else "is full") as error:
        store.download("learngene", "a", out)
    one_line(error)
    assert not out.exists()
    disk("8m")
    assert contents(store.download("learngene", "a", out)) == FILES

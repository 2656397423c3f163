"""Downloading: whole, verified, resumable."""

from pathlib import Path
from typing import Any

import pytest

from ray_learngene.errors import UserError
from ray_learngene.io.objects import Objects
from ray_learngene.store.store import Store
from tests.store.folders import WEIGHTS, contents, make_folder, one_line


def test_an_existing_folder_is_not_replaced_unless_asked(store: Store, folder: Path, tmp_path: Path) -> None:
    store.publish("learngene", "a", folder, {})
    out = make_folder(tmp_path / "out", {"config.json": b"mine"})
    with pytest.raises(UserError, match="out exists: choose another folder, or --overwrite"):
        store.download("learngene", "a", out)
    assert contents(out) == {"config.json": b"mine"}
    store.download("learngene", "a", out, overwrite=True)
    assert contents(out) == contents(folder)


@pytest.mark.parametrize(
    ("out", "says"),
    [
        ("/", "--out /: name a place"),
        ("~nobody-here/x", "--out ~nobody"),
        ("/proc/x", "no permission for --out /proc/x"),
    ],
)
def test_what_cannot_be_a_folder_of_its_own_is_refused(store: Store, folder: Path, out: str, says: str) -> None:
    store.publish("learngene", "a", folder, {})
    with pytest.raises(UserError, match=says) as error:
        store.download("learngene", "a", Path(out))
    one_line(error)


def test_overwrite_never_removes_files_of_something_else(store: Store, folder: Path, tmp_path: Path) -> None:
    store.publish("learngene", "a", folder, {})
    out = make_folder(tmp_path / "out", {"thesis.tex": b"years"})
    with pytest.raises(UserError, match=r"holds files that are not of learngene a \(thesis.tex\)"):
        store.download("learngene", "a", out, overwrite=True)
    assert contents(out) == {"thesis.tex": b"years"}


@pytest.mark.parametrize("ending", [".partial", ".replaced"])
def test_folders_of_somebody_else_beside_the_target_stay(
    store: Store, folder: Path, tmp_path: Path, ending: str
) -> None:
    store.publish("learngene", "a", folder, {})
    own = make_folder(tmp_path / f"out{ending}", {"thesis.tex": b"years"})
    with pytest.raises(UserError, match=rf"out{ending} is in the way of the pull.*\(thesis.tex\)") as error:
        store.download("learngene", "a", tmp_path / "out", overwrite=True)
    one_line(error)
    assert contents(own) == {"thesis.tex": b"years"} and sorted(tmp_path.glob("out*")) == [own]


def test_what_a_pull_was_to_replace_is_there_again_after_it_died(
    store: Store, folder: Path, files: dict[str, bytes], tmp_path: Path
) -> None:
    store.publish("learngene", "a", folder, {})
    make_folder(tmp_path / "out.replaced", {**files, ".pull-lock": b""})
    with pytest.raises(UserError, match="out exists: choose another folder, or --overwrite"):
        store.download("learngene", "a", tmp_path / "out")
    assert contents(tmp_path / "out") == files and not (tmp_path / "out.replaced").exists()


def test_an_interrupted_download_continues_where_it_stopped(
    store: Store, folder: Path, files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.publish("learngene", "a", folder, {})
    make_folder(tmp_path / "out.partial", {"model.safetensors": WEIGHTS[:123_456], "config.json": b"{}"})
    fetched: dict[str, int] = {}
    chunks = Objects.chunks

    def noted(self: Objects, path: str, offset: int) -> Any:
        fetched[path.rsplit("/", 1)[1]] = offset
        return chunks(self, path, offset)

    monkeypatch.setattr(Objects, "chunks", noted)
    assert contents(store.download("learngene", "a", tmp_path / "out")) == files
    assert fetched == {"model.safetensors": 123_456, "a.svg": 0, "empty.txt": 0}


def test_what_another_version_left_behind_does_no_harm(
    store: Store, folder: Path, files: dict[str, bytes], tmp_path: Path
) -> None:
    store.publish("learngene", "a", folder, {})
    left = {
        "model.safetensors": b"other" * 999,
        "config.json": b"[]",
        "plots/a.svg": b"longer than it was",
        "old.json": b"",
        ".pull-lock": b"",
    }
    make_folder(tmp_path / "out.partial", left)
    assert contents(store.download("learngene", "a", tmp_path / "out")) == files


def test_two_downloads_into_one_folder_do_not_mix(
    store: Store, folder: Path, files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.publish("learngene", "a", folder, {})
    second: list[str] = []
    chunks = Objects.chunks

    def interrupted(self: Objects, path: str, offset: int) -> Any:
        if path.endswith("model.safetensors"):
            with pytest.raises(UserError, match="another pull into .*out.partial is running") as error:
                store.download("learngene", "a", tmp_path / "out")
            second.append(one_line(error))
        return chunks(self, path, offset)

    monkeypatch.setattr(Objects, "chunks", interrupted)
    assert contents(store.download("learngene", "a", tmp_path / "out")) == files
    assert len(second) == 1

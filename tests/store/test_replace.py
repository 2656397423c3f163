"""Names taken, races, overwriting, death."""

import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from ray_learngene.errors import UserError
from ray_learngene.io.objects import Objects
from ray_learngene.store.manifest import Manifest
from ray_learngene.store.store import Store
from tests.store.folders import contents, make_folder


def test_a_taken_name_is_refused_unless_asked(store: Store, folder: Path) -> None:
    first = store.publish("learngene", "a", folder, {"n": 1})
    (folder / "config.json").write_bytes(b"[2]")
    with pytest.raises(UserError, match="'a' is already taken in .*--overwrite"):
        store.publish("learngene", "a", folder, {"n": 2})
    assert store.manifest("learngene", "a") == first
    second = store.publish("learngene", "a", folder, {"n": 2}, overwrite=True)
    assert store.manifest("learngene", "a") == second
    assert store.read_bytes("learngene", "a", "config.json") == b"[2]"


def test_a_reader_of_the_replaced_version_still_gets_it_whole(
    store: Store, folder: Path, files: dict[str, bytes]
) -> None:
    old = store.publish("learngene", "a", folder, {})
    (folder / "config.json").write_bytes(b"[2]")
    store.publish("learngene", "a", folder, {}, overwrite=True)
    read = {entry.path: store.objects.read(f"{old.base}/{entry.path}") for entry in old.files}
    assert read == files


def test_replaced_files_go_where_they_need_not_be_kept(store: Store, folder: Path, files: dict[str, bytes]) -> None:
    old = store.publish("checkpoint", "run/state", folder, {"epoch": 1})
    (folder / "config.json").write_bytes(b"[2]")
    (folder / "plots" / "a.svg").unlink()
    for _ in range(2):
        new = store.publish("checkpoint", "run/state", folder, {"epoch": 2}, overwrite=True, keep_replaced=False)
        assert new.version != old.version
        assert set(store.objects.find("checkpoints")) == {
            "checkpoints/run/state/manifest.json",
            *(f"{new.base}/{entry.path}" for entry in new.files),
        }
    assert [manifest.metadata for manifest in store.manifests("checkpoint", under="run")] == [{"epoch": 2}]
    assert store.read_bytes("checkpoint", "run/state", "config.json") == b"[2]"


def test_an_artefact_is_removed_manifest_first(store: Store, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("run/state", "run/other"):
        store.publish("checkpoint", name, folder, {})
    store.write_text("runs/run/state.json", "{}")
    deleted: list[str] = []
    delete = Objects.delete

    def noted(self: Objects, path: str) -> None:
        deleted.append(path)
        delete(self, path)

    monkeypatch.setattr(Objects, "delete", noted)
    store.remove("checkpoint", "run/state")
    assert deleted[0] == "checkpoints/run/state/manifest.json"
    assert not store.exists("checkpoint", "run/state")
    assert store.objects.find("checkpoints/run/state") == []
    store.remove("checkpoint", "run/state")
    store.remove_tree("runs/run")
    assert store.objects.find("runs") == []
    assert store.exists("checkpoint", "run/other")


@pytest.mark.parametrize("same_files", [False, True])
def test_of_publishers_at_once_exactly_one_wins(
    store_uri: str, tmp_path: Path, same_files: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = 4
    folders = [
        make_folder(tmp_path / str(n), {"model.safetensors": b"weights" if same_files else b"weights %d" % n})
        for n in range(count)
    ]
    together = threading.Barrier(count)
    create = Objects.create

    def create_together(self: Objects, path: str, data: bytes) -> bool:
        together.wait(60)  # all have seen the name free and have sent their files
        return create(self, path, data)

    monkeypatch.setattr(Objects, "create", create_together)

    def publish(n: int) -> Manifest | UserError:
        try:
            return Store(store_uri).publish("learngene", "a", folders[n], {"publisher": n})
        except UserError as error:
            return error

    with ThreadPoolExecutor(count) as pool:
        results = list(pool.map(publish, range(count)))
    winners = [result for result in results if isinstance(result, Manifest)]
    assert len(winners) == 1
    assert all("already taken" in str(result) for result in results if isinstance(result, UserError))
    store = Store(store_uri)
    assert store.manifest("learngene", "a") == winners[0]
    store.read_bytes("learngene", "a", "model.safetensors")
    assert store.objects.find("learngenes") == [
        f"{winners[0].base}/model.safetensors",
        "learngenes/a/manifest.json",
    ]


def test_a_publisher_whose_answer_was_lost_has_not_lost_the_race(
    store: Store, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = Objects.create

    def create_and_repeat(self: Objects, path: str, data: bytes) -> bool:
        create(self, path, data)
        return create(self, path, data)

    monkeypatch.setattr(Objects, "create", create_and_repeat)
    manifest = store.publish("learngene", "a", folder, {})
    assert store.manifest("learngene", "a") == manifest


class Death(BaseException):
    """The process ends here: nothing in the product may handle it."""


@pytest.mark.parametrize("overwrite", [False, True])
def test_death_between_any_two_writes_leaves_the_old_state(
    store_uri: str, tmp_path: Path, files: dict[str, bytes], overwrite: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_folder(tmp_path / "new", files)
    store = Store(store_uri)
    if overwrite:
        store.publish("learngene", "a", make_folder(tmp_path / "old", {"config.json": b"old"}), {"old": True})
    written: list[str] = []
    limit = 0

    def dying(write: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(self: Objects, path_or_source: Any, path_or_data: Any, *others: Any) -> Any:
            if len(written) >= limit:
                raise Death
            written.append(str(path_or_data if isinstance(path_or_source, Path) else path_or_source))
            return write(self, path_or_source, path_or_data, *others)

        return wrapped

    for name in ("upload", "put", "create"):
        monkeypatch.setattr(Objects, name, dying(getattr(Objects, name)))
    while True:
        written.clear()
        try:
            Store(store_uri).publish("learngene", "a", folder, {"new": True}, overwrite=overwrite)
            break
        except Death:
            reader = Store(store_uri)
            assert reader.exists("learngene", "a") == overwrite
            if overwrite:
                assert contents(reader.download("learngene", "a", tmp_path / f"at-{limit}")) == {"config.json": b"old"}
        limit += 1
    assert limit >= len(files) + 1
    assert written[-1].endswith("a/manifest.json") or "store.json" in written[-1]
    assert contents(Store(store_uri).download("learngene", "a", tmp_path / "out")) == files


def test_a_killed_publisher_leaves_nothing_visible_and_can_be_run_again(
    store_uri: str, tmp_path: Path, files: dict[str, bytes]
) -> None:
    folder = make_folder(tmp_path / "new", files)
    program = """
import os, sys
from pathlib import Path
from ray_learngene.io.objects import Objects
from ray_learngene.io.errors import explain
from ray_learngene.store.store import Store
Objects.create = lambda *arguments: os.kill(os.getpid(), 9)
Store(sys.argv[1]).publish("learngene", "a", Path(sys.argv[2]), {})
"""
    ended = subprocess.run([sys.executable, "-c", program, store_uri, str(folder)], timeout=900, check=False)
    assert ended.returncode == -9
    store = Store(store_uri)
    assert not store.exists("learngene", "a")
    assert store.manifests("learngene") == []
    store.publish("learngene", "a", folder, {})
    assert contents(store.download("learngene", "a", tmp_path / "out")) == files

"""The store on a local folder and on a real S3 server."""

import hashlib
import json
import logging
import os
import pickle
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow
import pytest

from ray_learngene.errors import UserError
from ray_learngene.filesystems import explain, filesystem, locate
from ray_learngene.manifest import FileEntry, Manifest, version_of
from ray_learngene.objects import Objects
from ray_learngene.store import Store
from tests.conftest import S3Server, free_ports

WEIGHTS = os.urandom(300_000)


def make_folder(path: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def files() -> dict[str, bytes]:
    return {"model.safetensors": WEIGHTS, "config.json": b"{}", "plots/a.svg": b"<svg/>", "empty.txt": b""}


@pytest.fixture
def folder(tmp_path: Path, files: dict[str, bytes]) -> Path:
    return make_folder(tmp_path / "folder", files)


@pytest.fixture
def store(store_uri: str) -> Store:
    return Store(store_uri)


def one_line(error: pytest.ExceptionInfo[UserError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


# Publishing and reading


def test_what_is_published_can_be_read_back(
    store: Store, folder: Path, files: dict[str, bytes], tmp_path: Path
) -> None:
    assert not store.exists("learngene", "sws-s")
    manifest = store.publish("learngene", "sws-s", folder, {"method": "sws", "seed": 0})

    assert store.exists("learngene", "sws-s")
    assert store.manifest("learngene", "sws-s") == manifest
    assert manifest.metadata == {"method": "sws", "seed": 0}
    assert {entry.path: (entry.bytes, entry.sha256) for entry in manifest.files} == {
        name: (len(content), hashlib.sha256(content).hexdigest()) for name, content in files.items()
    }
    out = store.download("learngene", "sws-s", tmp_path / "pulled" / "model")
    assert out == tmp_path / "pulled" / "model"
    assert contents(out) == files
    assert [path.name for path in out.parent.iterdir()] == ["model"]
    assert store.read_bytes("learngene", "sws-s", "model.safetensors") == WEIGHTS
    with pytest.raises(UserError, match="has no file 'other.json': it has config.json"):
        store.read_bytes("learngene", "sws-s", "other.json")


def test_a_published_artefact_lies_where_the_layout_says(store: Store, folder: Path) -> None:
    manifest = store.publish("descendant", "first/ti-9", folder, {})
    base = f"descendants/first/ti-9/{manifest.version}"
    assert re.fullmatch("[0-9a-f]{12}", manifest.version)
    assert set(store.objects.find("descendants")) == {
        "descendants/first/ti-9/manifest.json",
        *(f"{base}/{entry.path}" for entry in manifest.files),
    }


def test_the_version_depends_on_the_files_alone(store: Store, folder: Path) -> None:
    first = store.publish("learngene", "a", folder, {"note": 1})
    assert store.publish("learngene", "b", folder, {"note": 2}).version == first.version
    (folder / "config.json").write_bytes(b"[]")
    assert store.publish("learngene", "c", folder, {"note": 1}).version != first.version


def test_manifests_lists_every_artefact_of_a_kind(store: Store, folder: Path) -> None:
    assert store.manifests("descendant") == []
    for name in ("two/b", "one/a", "one/b"):
        store.publish("descendant", name, folder, {"of": name})
    store.publish("learngene", "other", folder, {})
    assert [manifest.name for manifest in store.manifests("descendant")] == ["one/a", "one/b", "two/b"]
    assert [manifest.metadata["of"] for manifest in store.manifests("descendant", under="one")] == ["one/a", "one/b"]
    assert store.manifests("descendant", under="none") == []
    assert [manifest.name for manifest in store.manifests("learngene")] == ["other"]


def test_an_absent_artefact_names_what_is_near(store: Store, folder: Path) -> None:
    with pytest.raises(UserError, match="no learngene 'sws' in .*: there is no learngene at all"):
        store.manifest("learngene", "sws")
    for name in ("sws-small", "wave"):
        store.publish("learngene", name, folder, {})
    with pytest.raises(UserError, match="no learngene 'sws-smal' in .*: there is sws-small$"):
        store.manifest("learngene", "sws-smal")


@pytest.mark.parametrize("name", ["", "a/b", "..", ".hidden", "a b", "a\\b", "/a", "a\n", "é", "x" * 129])
def test_impossible_names_are_refused(store: Store, folder: Path, name: str) -> None:
    with pytest.raises(UserError, match="is not the name of a learngene") as error:
        store.publish("learngene", name, folder, {})
    one_line(error)
    with pytest.raises(UserError, match="is not the name of a descendant: write GROUP/NAME"):
        store.manifest("descendant", name.replace("a/b", "a/b/c"))


def test_folders_that_cannot_be_published_are_refused(store: Store, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="it is not a folder"):
        store.publish("learngene", "a", tmp_path / "none", {})
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="it holds no files"):
        store.publish("learngene", "a", tmp_path / "empty", {})
    pickled = make_folder(tmp_path / "pickled", {"pytorch_model.bin": b"x"})
    with pytest.raises(UserError, match="may be a pickle") as error:
        store.publish("learngene", "a", pickled, {})
    one_line(error)
    assert not store.exists("learngene", "a")


# Names taken, races, overwriting, death


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
    read = {entry.path: store.objects.read(f"learngenes/a/{old.version}/{entry.path}") for entry in old.files}
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
            *(f"checkpoints/run/state/{new.version}/{entry.path}" for entry in new.files),
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
    version = winners[0].version
    assert store.objects.find("learngenes") == [
        f"learngenes/a/{version}/model.safetensors",
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
        def wrapped(self: Objects, path_or_source: Any, path_or_data: Any) -> Any:
            if len(written) >= limit:
                raise Death
            written.append(str(path_or_data if isinstance(path_or_source, Path) else path_or_source))
            return write(self, path_or_source, path_or_data)

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
from ray_learngene.objects import Objects
from ray_learngene.store import Store
Objects.create = lambda *arguments: os.kill(os.getpid(), 9)
Store(sys.argv[1]).publish("learngene", "a", Path(sys.argv[2]), {})
"""
    ended = subprocess.run([sys.executable, "-c", program, store_uri, str(folder)], timeout=120, check=False)
    assert ended.returncode == -9
    store = Store(store_uri)
    assert not store.exists("learngene", "a")
    assert store.manifests("learngene") == []
    store.publish("learngene", "a", folder, {})
    assert contents(store.download("learngene", "a", tmp_path / "out")) == files


# Downloading


def test_an_existing_folder_is_not_replaced_unless_asked(store: Store, folder: Path, tmp_path: Path) -> None:
    store.publish("learngene", "a", folder, {})
    out = make_folder(tmp_path / "out", {"config.json": b"mine"})
    with pytest.raises(UserError, match="out exists: choose another folder, or --overwrite"):
        store.download("learngene", "a", out)
    assert contents(out) == {"config.json": b"mine"}
    store.download("learngene", "a", out, overwrite=True)
    assert contents(out) == contents(folder)


def test_overwrite_never_removes_files_of_something_else(store: Store, folder: Path, tmp_path: Path) -> None:
    store.publish("learngene", "a", folder, {})
    out = make_folder(tmp_path / "out", {"thesis.tex": b"years"})
    with pytest.raises(UserError, match=r"holds files that are not of learngene a \(thesis.tex\)"):
        store.download("learngene", "a", out, overwrite=True)
    assert contents(out) == {"thesis.tex": b"years"}


def test_a_corrupted_object_is_refused(store: Store, folder: Path, tmp_path: Path) -> None:
    manifest = store.publish("learngene", "a", folder, {})
    for damaged in (WEIGHTS[:-1] + b"x", WEIGHTS[:-1], WEIGHTS + b"x", b""):
        store.objects.put(f"learngenes/a/{manifest.version}/model.safetensors", damaged)
        with pytest.raises(UserError, match="model.safetensors does not match its manifest") as error:
            store.download("learngene", "a", tmp_path / "out")
        one_line(error)
        assert not (tmp_path / "out").exists()
        assert not (tmp_path / "out.partial" / "model.safetensors").exists()
        with pytest.raises(UserError, match="does not match its SHA-256"):
            store.read_bytes("learngene", "a", "model.safetensors")
    store.objects.delete(f"learngenes/a/{manifest.version}/model.safetensors")
    with pytest.raises(UserError, match="nothing is at .*model.safetensors"):
        store.download("learngene", "a", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match="is missing"):
        store.read_bytes("learngene", "a", "model.safetensors")


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


HOSTILE = ["../../evil", "/etc/evil", "a/../../evil", "a//b", "./a", "", "C:evil", "a\\..\\evil", "a\x00b"]
PICKLES = ["model.pkl", "pytorch_model.bin", "a/model.PT", "model.pth"]


@pytest.mark.parametrize("path", HOSTILE + PICKLES)
def test_hostile_manifests_are_refused(store: Store, folder: Path, tmp_path: Path, path: str) -> None:
    manifest = store.publish("learngene", "a", folder, {})
    good = FileEntry(path="x", bytes=4, sha256=hashlib.sha256(b"evil").hexdigest())
    evil = good.model_copy(update={"path": path})
    forged = manifest.model_copy(update={"files": [evil], "version": version_of([evil])})
    store.objects.put("learngenes/a/manifest.json", forged.model_dump_json().encode())
    before = contents(tmp_path)
    for read in (
        lambda: store.manifest("learngene", "a"),
        lambda: store.manifests("learngene"),
        lambda: store.download("learngene", "a", tmp_path / "deep" / "out"),
        lambda: store.read_bytes("learngene", "a", path),
    ):
        with pytest.raises(UserError, match="learngenes/a/manifest.json is not usable") as error:
            read()
        one_line(error)
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "written by a later version"),
        ({"name": "b"}, "is that of learngene 'b'"),
        ({"version": "0" * 12}, "version does not match the files"),
        ({"files": []}, "is not usable: files"),
        ({"kind": "thing"}, "is not usable: kind"),
    ],
)
def test_manifests_that_say_something_else_are_refused(
    store: Store, folder: Path, change: dict[str, Any], message: str
) -> None:
    manifest = store.publish("learngene", "a", folder, {})
    text = json.dumps({**manifest.model_dump(), **change})
    store.objects.put("learngenes/a/manifest.json", text.encode())
    with pytest.raises(UserError, match=message) as error:
        store.manifest("learngene", "a")
    one_line(error)
    store.objects.put("learngenes/a/manifest.json", b"\xff{")
    with pytest.raises(UserError, match="is not usable"):
        store.manifest("learngene", "a")


# Tables and texts


def test_tables_survive_the_round_trip(store: Store) -> None:
    table = pyarrow.table({"name": ["a", "b"], "top1": [0.5, None], "parameters": [10, 20]})
    store.write_table("sweeps/first/results.parquet", table)
    assert store.read_table("sweeps/first/results.parquet") == table
    store.write_table("sweeps/first/results.parquet", table.slice(1))
    assert store.read_table("sweeps/first/results.parquet") == table.slice(1)
    assert store.objects.find("sweeps") == ["sweeps/first/results.parquet"]
    with pytest.raises(UserError, match="there is no table .*sweeps/other.parquet"):
        store.read_table("sweeps/other.parquet")
    store.write_text("sweeps/first/results.parquet", "not Parquet")
    with pytest.raises(UserError, match="results.parquet cannot be read") as error:
        store.read_table("sweeps/first/results.parquet")
    one_line(error)


def test_a_text_is_created_once(store: Store) -> None:
    assert store.read_text("sweeps/first/sweep.json") is None
    assert store.create_text("sweeps/first/sweep.json", "{} é")
    assert not store.create_text("sweeps/first/sweep.json", "[]")
    assert store.read_text("sweeps/first/sweep.json") == "{} é"
    store.write_text("sweeps/first/sweep.json", "[]")
    assert store.read_text("sweeps/first/sweep.json") == "[]"
    assert json.loads(store.read_text("store.json") or "") == {"format": 1, "conditional_create": True}


@pytest.mark.parametrize("path", ["../out.txt", "/tmp/out.txt", "", "a/../../b"])
def test_paths_outside_the_store_are_refused(store: Store, path: str) -> None:
    with pytest.raises(UserError, match="is not a plain relative path"):
        store.write_text(path, "x")
    with pytest.raises(UserError, match="is not a plain relative path"):
        store.read_text(path)


def test_storage_without_conditional_writes_is_noticed_once(
    store_uri: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def ignores_the_condition(self: Objects, path: str, data: bytes) -> bool:
        self.put(path, data)
        return True

    monkeypatch.setattr(Objects, "_create", ignores_the_condition)
    store = Store(store_uri)
    with caplog.at_level(logging.WARNING, "ray_learngene"):
        assert store.create_text("a.txt", "1")
        assert not store.create_text("a.txt", "2")
    assert store.read_text("a.txt") == "1"
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "two publishers" in caplog.text
    assert json.loads(Store(store_uri).read_text("store.json") or "")["conditional_create"] is False
    assert [path for path in store.objects.find("") if "probe" in path] == []


def test_a_folder_without_hard_links_is_a_store_all_the_same(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(*arguments: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    store = Store(str(tmp_path / "store"))
    store.publish("learngene", "a", folder, {})
    with pytest.raises(UserError, match="already taken"):
        store.publish("learngene", "a", folder, {})


# Where the store is


def test_a_store_pickles_as_its_uri(store: Store, folder: Path, s3_server: S3Server) -> None:
    store.publish("learngene", "a", folder, {})
    pickled = pickle.dumps(store)
    assert len(pickled) < 300
    assert s3_server.secret.encode() not in pickled
    again = pickle.loads(pickled)
    assert again.uri == store.uri
    assert again.exists("learngene", "a")


def test_ray_writes_beside_the_artefacts(store: Store, s3_server: S3Server) -> None:
    path, storage = store.ray_storage("first")
    if storage is None:
        assert path == f"{store.uri}/runs"
        return
    assert f"s3://{path}" == f"{store.uri}/runs"
    pickled = pickle.dumps(storage)
    assert s3_server.secret.encode() not in pickled
    assert s3_server.access_key.encode() not in pickled
    with pickle.loads(pickled).open_output_stream(f"{path}/first/state.json") as stream:
        stream.write(b"{}")
    assert store.read_text("runs/first/state.json") == "{}"
    with pytest.raises(UserError):
        store.ray_storage("../first")


def test_local_uris_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for uri in ("store", "./store/", "~/store", f"file://{tmp_path}/store"):
        assert Store(uri).uri == str(tmp_path / "store")
    assert Store("s3://bucket/a//b/").uri == "s3://bucket/a/b"
    assert Store("s3://bucket").uri == "s3://bucket"
    assert locate("s3://bucket/a") == ("s3", "bucket/a")
    assert filesystem("store")[1] == str(tmp_path / "store")


@pytest.mark.parametrize("uri", ["gs://bucket/a", "hf://datasets/a", "https://host/a", ""])
def test_other_schemes_are_refused(uri: str) -> None:
    with pytest.raises(UserError, match="is not supported: give a local path, file:///path or s3://bucket/prefix"):
        Store(uri)


@pytest.mark.parametrize("uri", ["s3://", "s3://key:hidden@bucket/a", "s3://bucket/a?secret_key=hidden", "s3://b/../a"])
def test_misread_s3_addresses_are_refused_without_an_echo(uri: str) -> None:
    with pytest.raises(UserError, match="write s3://bucket/prefix") as error:
        Store(uri)
    assert "hidden" not in one_line(error)


# The check before any work, and what goes wrong


def test_a_good_store_passes_the_check_and_keeps_no_trace(store: Store, store_uri: str) -> None:
    store.check(write=True)
    store.check(write=False)
    assert store.objects.find("") == []


def test_a_missing_local_store_is_created_only_for_writing(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "none"))
    with pytest.raises(UserError, match="there is no store at .*none"):
        store.check(write=False)
    store.check(write=True)
    store.check(write=False)


def test_a_file_in_the_way_of_a_local_store_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for path in ("file", "file/below"):
        with pytest.raises(UserError, match="cannot be a folder: a file stands in its way") as error:
            Store(str(tmp_path / path)).check(write=True)
        one_line(error)


def every_use(store: Store, folder: Path, out: Path) -> list[Callable[[], Any]]:
    return [
        lambda: store.check(write=False),
        lambda: store.check(write=True),
        lambda: store.exists("learngene", "a"),
        lambda: store.manifest("learngene", "a"),
        lambda: store.manifests("learngene"),
        lambda: store.publish("learngene", "a", folder, {}),
        lambda: store.publish("learngene", "a", folder, {}, overwrite=True),
        lambda: store.download("learngene", "a", out),
        lambda: store.write_text("a.txt", "x"),
        lambda: store.create_text("a.txt", "x"),
        lambda: store.read_text("a.txt"),
        lambda: store.ray_storage("a"),
    ]


def test_a_missing_bucket_is_named_and_never_created(
    s3_env: Callable[[], str], s3_server: S3Server, folder: Path, tmp_path: Path
) -> None:
    for n in range(len(every_use(Store("s3://x"), folder, tmp_path))):
        store = Store("s3://no-such-bucket-here/prefix")
        with pytest.raises(UserError, match="the bucket of s3://no-such-bucket-here.* does not exist") as error:
            every_use(store, folder, tmp_path / "out")[n]()
        one_line(error)
    buckets = s3_server.client().list_buckets()["Buckets"]
    assert "no-such-bucket-here" not in [bucket["Name"] for bucket in buckets]


@pytest.mark.parametrize("variable", ["AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID"])
def test_wrong_credentials_are_one_line_without_them(
    s3_env: Callable[[], str], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    uri = s3_env()
    monkeypatch.setenv(variable, "wrong-and-private")
    for n in range(len(every_use(Store(uri), folder, tmp_path))):
        with pytest.raises(UserError, match=f"does not accept the credentials for {uri}.*AWS_ACCESS_KEY_ID") as error:
            every_use(Store(uri), folder, tmp_path / "out")[n]()
        text = one_line(error)
        assert "wrong-and-private" not in text
        assert os.environ["AWS_SECRET_ACCESS_KEY"] not in text


def test_a_key_that_may_only_read_reads_and_is_refused_the_rest(
    s3_env: Callable[[], str], s3_server: S3Server, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = s3_env()
    Store(uri).publish("learngene", "a", folder, {})
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3_server.reader_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3_server.reader_secret)
    store = Store(uri)
    store.check(write=False)
    assert contents(store.download("learngene", "a", tmp_path / "out")) == contents(folder)
    for write in (
        lambda: store.check(write=True),
        lambda: store.publish("learngene", "b", folder, {}),
        lambda: store.publish("learngene", "a", folder, {}, overwrite=True),
        lambda: store.create_text("a.txt", "x"),
        lambda: store.write_text("a.txt", "x"),
        lambda: store.objects.delete("store.json"),
    ):
        with pytest.raises(UserError, match=f"access to {uri}/.* is denied: check AWS_ACCESS_KEY_ID") as error:
            write()
        assert "never-printed" not in one_line(error)


def test_absent_credentials_are_explained(s3_env: Callable[[], str], monkeypatch: pytest.MonkeyPatch) -> None:
    uri = s3_env()
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(UserError, match=f"no S3 credentials for {uri}: set AWS_ACCESS_KEY_ID"):
        Store(uri).check(write=False)
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(UserError, match="AWS_PROFILE names a profile that does not exist"):
        Store(uri).check(write=False)


def test_a_profile_gives_endpoint_region_and_keys(
    s3_env: Callable[[], str], s3_server: S3Server, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = s3_env()
    for name in ("AWS_ENDPOINT_URL", "AWS_DEFAULT_REGION", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    config, keys = tmp_path / "aws-config", tmp_path / "aws-keys"
    config.write_text(f"[profile lab]\nregion = eu-west-1\nendpoint_url = {s3_server.endpoint}\n")
    keys.write_text(f"[lab]\naws_access_key_id = {s3_server.access_key}\naws_secret_access_key = {s3_server.secret}\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(keys))
    monkeypatch.setenv("AWS_PROFILE", "lab")
    store = Store(uri)
    store.publish("learngene", "a", folder, {})
    assert contents(store.download("learngene", "a", tmp_path / "out")) == contents(folder)


def test_the_endpoint_for_s3_alone_comes_first(s3_env: Callable[[], str], monkeypatch: pytest.MonkeyPatch) -> None:
    uri = s3_env()
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", os.environ["AWS_ENDPOINT_URL"])
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_ports(1)[0]}")
    Store(uri).check(write=True)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "127.0.0.1:9000")
    with pytest.raises(UserError, match="AWS_ENDPOINT_URL must begin with http:// or https://"):
        Store(uri).check(write=True)


def test_an_unreachable_endpoint_is_named(
    s3_env: Callable[[], str], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = f"127.0.0.1:{free_ports(1)[0]}"
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{address}")
    message = f"no answer from the S3 server {address} for s3://bucket/prefix.*AWS_ENDPOINT_URL"
    with pytest.raises(UserError, match=message) as error:
        Store("s3://bucket/prefix").check(write=False)
    one_line(error)
    with pytest.raises(UserError, match=message):
        Store("s3://bucket/prefix").publish("learngene", "a", folder, {})


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(28, "No space left on device"), "the disk of /a is full"),
        (PermissionError(13, "Permission denied"), "no permission for /a"),
        (OSError(30, "Read-only file system"), "no permission for /a"),
        (OSError(39, "Directory not empty"), "a folder that is not empty stands at /a"),
        (OSError("AWS Error SLOW_DOWN during PutObject operation: x"), "overloaded or failing"),
        (OSError("AWS Error UNKNOWN (HTTP status 503) during x"), "overloaded or failing"),
        (OSError("AWS Error UNKNOWN (HTTP status 301) during x"), "set AWS_REGION"),
        (OSError("two\nlines"), "cannot be read or written: two lines"),
        (OSError(), "cannot be read or written: OSError"),
    ],
)
def test_errors_are_explained(error: OSError, message: str) -> None:
    explained = explain(error, "/a")
    assert message in str(explained)
    assert "\n" not in str(explained)


def test_the_store_imports_without_torch_and_ray() -> None:
    program = (
        "import sys, ray_learngene.store; print([m for m in ('torch', 'ray', 'timm', 's3fs') if m in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True)
    assert ran.stdout.strip() == "[]"

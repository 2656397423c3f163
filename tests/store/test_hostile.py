"""Damaged and hostile content is refused by name, and nothing is written outside the target."""

import hashlib
import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest

from ray_learngene.errors import UserError
from ray_learngene.store.checkpoints import StoreCheckpoints
from ray_learngene.store.manifest import FileEntry, version_of
from ray_learngene.store.store import Store
from tests.store.folders import WEIGHTS, contents, make_folder, one_line


def test_a_corrupted_object_is_refused(store: Store, folder: Path, tmp_path: Path) -> None:
    manifest = store.publish("learngene", "a", folder, {})
    for damaged in (WEIGHTS[:-1] + b"x", WEIGHTS[:-1], WEIGHTS + b"x", b""):
        store.objects.put(f"{manifest.base}/model.safetensors", damaged)
        with pytest.raises(UserError, match="model.safetensors does not match its manifest") as error:
            store.download("learngene", "a", tmp_path / "out")
        one_line(error)
        assert not (tmp_path / "out").exists()
        assert not (tmp_path / "out.partial" / "model.safetensors").exists()
        with pytest.raises(UserError, match="does not match its SHA-256"):
            store.read_bytes("learngene", "a", "model.safetensors")
    store.objects.delete(f"{manifest.base}/model.safetensors")
    with pytest.raises(UserError, match="nothing is at .*model.safetensors"):
        store.download("learngene", "a", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match="is missing"):
        store.read_bytes("learngene", "a", "model.safetensors")


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
        lambda: store.download("learngene", "a", tmp_path / "deep" / "out"),
        lambda: store.read_bytes("learngene", "a", path),
    ):
        with pytest.raises(UserError, match="learngenes/a/manifest.json is not usable") as error:
            read()
        one_line(error)
    assert store.manifests("learngene") == []  # it is named, and the others are read
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 3}, "written by a later version"),
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


DEEP = b'{"a":' * 100_000 + b"1" + b"}" * 100_000


@pytest.mark.parametrize("text", [b"", b"[]", b"null", b"{}", DEEP, b'{"format": 99, "new": true}', b"\x80\x04pickle."])
def test_manifests_that_are_none_are_refused(store: Store, folder: Path, text: bytes) -> None:
    store.publish("learngene", "a", folder, {})
    store.objects.put("learngenes/a/manifest.json", text)
    message = (
        "was written by a later version .format 99.: upgrade"
        if b"99" in text
        else "learngenes/a/manifest.json is not usable"
    )
    with pytest.raises(UserError, match=message) as error:
        store.manifest("learngene", "a")
    one_line(error)


def test_a_manifest_without_end_is_refused_unread(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray_learngene.store.store.MOST_BYTES", 1000)
    store.objects.put("learngenes/a/manifest.json", b" " * 5000)
    with pytest.raises(UserError, match="learngenes/a/manifest.json has more than 1,000 bytes") as error:
        store.manifest("learngene", "a")
    one_line(error)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"path": "model.safetensors", "bytes": 2**52}, "MB more, and the disk of"),
        ({"path": "model.safetensors", "bytes": 2**60}, "is not usable"),
        ({"path": "model.safetensors", "bytes": -1}, "is not usable"),
        ({"path": "config.json", "bytes": 2**40}, "more than any description has"),
    ],
)
def test_absurd_sizes_are_refused_before_anything_is_fetched(
    store: Store, folder: Path, tmp_path: Path, entry: dict[str, Any], message: str
) -> None:
    manifest = store.publish("learngene", "a", folder, {})
    absurd = FileEntry.model_construct(**entry, sha256="0" * 64)
    forged = {**manifest.model_dump(), "files": [absurd.model_dump()], "version": version_of([absurd])}
    store.objects.put("learngenes/a/manifest.json", json.dumps(forged).encode())
    with pytest.raises(UserError, match=message) as error:
        store.download("learngene", "a", tmp_path / "out")
    one_line(error)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("place", ["../../../evil", "/etc", "a/b", "..", ".", "a\\b"])
def test_files_outside_the_artefacts_own_folder_are_refused(store: Store, folder: Path, place: str) -> None:
    manifest = store.publish("learngene", "a", folder, {})
    store.objects.put("learngenes/a/manifest.json", json.dumps({**manifest.model_dump(), "folder": place}).encode())
    with pytest.raises(UserError, match="is not the name of a folder") as error:
        store.read_bytes("learngene", "a", "config.json")
    one_line(error)


def test_swapped_objects_are_refused(store: Store, tmp_path: Path) -> None:
    made = make_folder(tmp_path / "made", {"a.safetensors": b"one", "b.safetensors": b"two"})
    base = store.publish("learngene", "a", made, {}).base
    for name, content in (("a", b"two"), ("b", b"one")):
        store.objects.put(f"{base}/{name}.safetensors", content)
    with pytest.raises(UserError, match="[ab].safetensors does not match its manifest"):
        store.download("learngene", "a", tmp_path / "out")
    assert not (tmp_path / "out").exists()


class Evil:
    """Unpickling it makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("description", [b"{}", b"[", b"\x80", b'{"method": "sws", "options": 3}'])
def test_a_learngene_that_is_a_pickle_in_disguise_is_refused_by_name(tmp_path: Path, description: bytes) -> None:
    from ray_learngene.store.learngenes import StoredLearngene

    store = Store(str(tmp_path / "store"))
    made = {"learngene.safetensors": pickle.dumps(Evil(tmp_path / "unpickled")), "learngene.json": description}
    store.publish("learngene", "evil", make_folder(tmp_path / "made", made), {})
    with pytest.raises(UserError, match="the learngene 'evil' in .* is not one that this version can read") as error:
        StoredLearngene.load(store, "evil")
    one_line(error)
    assert not (tmp_path / "unpickled").exists()


def test_a_model_that_is_a_pickle_in_disguise_is_refused_by_name(tmp_path: Path) -> None:
    from ray_learngene.ancestry.model import load_ancestry

    store = Store(str(tmp_path / "store"))
    made = {
        "model.safetensors": pickle.dumps(Evil(tmp_path / "unpickled")),
        "config.json": b'{"architecture": "test_vit"}',
    }
    store.publish("ancestry", "evil", make_folder(tmp_path / "made", made), {})
    with pytest.raises(UserError, match="does not load as a timm model") as error:
        load_ancestry("store:ancestries/evil", store)
    one_line(error)
    assert not (tmp_path / "unpickled").exists()


def test_a_checkpoint_of_another_format_is_refused_by_name(store: Store, folder: Path) -> None:
    store.publish("checkpoint", "run/state", folder, {"format": 7})
    with pytest.raises(UserError, match="the checkpoint run/state in .* is of format 7") as error:
        StoreCheckpoints(store, "run/state").latest().__enter__()
    one_line(error)


@pytest.mark.parametrize("kind", ["symlink", "hard link", "folder", "pipe", "lock"])
def test_a_pull_writes_through_no_link_and_waits_for_no_pipe(
    store: Store, folder: Path, files: dict[str, bytes], tmp_path: Path, kind: str
) -> None:
    store.publish("learngene", "a", folder, {})
    mine = make_folder(tmp_path / "mine", {"thesis.tex": b"years", "a.svg": b"a drawing"})
    partial = make_folder(tmp_path / "out.partial", {".pull-lock": b""})
    if kind == "symlink":
        (partial / "model.safetensors").symlink_to(mine / "thesis.tex")
    elif kind == "hard link":
        os.link(mine / "thesis.tex", partial / "model.safetensors")
    elif kind == "folder":
        (partial / "plots").symlink_to(mine)
    elif kind == "pipe":
        os.mkfifo(partial / "config.json")
    else:
        (partial / ".pull-lock").unlink()
        (partial / ".pull-lock").symlink_to(mine / "thesis.tex")
    if kind == "lock":
        with pytest.raises(UserError) as error:
            store.download("learngene", "a", tmp_path / "out")
        one_line(error)
    else:
        assert contents(store.download("learngene", "a", tmp_path / "out")) == files
    assert contents(mine) == {"thesis.tex": b"years", "a.svg": b"a drawing"}


def test_a_partial_folder_that_is_a_link_is_refused(store: Store, folder: Path, tmp_path: Path) -> None:
    store.publish("learngene", "a", folder, {})
    mine = make_folder(tmp_path / "mine", {".pull-lock": b"", "thesis.tex": b"years"})
    (tmp_path / "out.partial").symlink_to(mine)
    with pytest.raises(UserError, match="out.partial is a link, and in the way of the pull") as error:
        store.download("learngene", "a", tmp_path / "out")
    one_line(error)
    assert (mine / "thesis.tex").read_bytes() == b"years"


def test_pipes_and_devices_in_a_store_are_no_objects(folder: Path, tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"))
    manifest = store.publish("learngene", "a", folder, {})
    (tmp_path / "store" / "learngenes" / "pipe").mkdir()
    os.mkfifo(tmp_path / "store" / "learngenes" / "pipe" / "manifest.json")
    assert [entry.name for entry in store.entries()] == ["a"]
    with pytest.raises(UserError, match="manifest.json is a pipe or a device, not a file: remove it") as error:
        store.manifest("learngene", "pipe")
    one_line(error)
    weights = tmp_path / "store" / manifest.base / "model.safetensors"
    weights.unlink()
    weights.symlink_to("/dev/zero")
    with pytest.raises(UserError, match="model.safetensors is a pipe or a device"):
        store.download("learngene", "a", tmp_path / "out")
    assert not store.exists("learngene", "a")

"""Publishing into a store and reading from it, in a local folder and on a real S3 server."""

import hashlib
import re
from pathlib import Path

import pytest

from ray_learngene.errors import UserError
from ray_learngene.store.manifest import list_files
from ray_learngene.store.store import Store
from tests.store.folders import WEIGHTS, contents, make_folder, one_line


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
    base = manifest.base
    assert re.fullmatch("[0-9a-f]{12}", manifest.version)
    assert re.fullmatch(r"descendants/first/ti-9/\d{8}T\d{6}-[0-9a-f]{8}", base)
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
    for name in ("a/one", "photos/two"):
        store.publish("descendant", name, folder, {})
    with pytest.raises(UserError, match="no descendant 'photos/nothing' in .*: there is photos/two$"):
        store.manifest("descendant", "photos/nothing")


@pytest.mark.parametrize("name", ["", "a/b", "..", ".hidden", "a b", "a\\b", "/a", "a\n", "é", "x" * 129])
def test_impossible_names_are_refused(store: Store, folder: Path, name: str) -> None:
    with pytest.raises(UserError, match="is not the name of a learngene") as error:
        store.publish("learngene", name, folder, {})
    one_line(error)
    with pytest.raises(UserError, match="is not the name of a descendant: write SWEEP/NAME"):
        store.manifest("descendant", name.replace("a/b", "a/b/c"))


def test_nothing_is_left_of_what_could_not_be_published(
    store: Store, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match="serialize"):
        store.publish("learngene", "a", folder, {"not": object()})
    assert store.objects.find("learngenes") == []

    listed = [*list_files(folder), "gone.json"]  # deleted since
    monkeypatch.setattr("ray_learngene.store.publish.list_files", lambda folder: listed)
    with pytest.raises(UserError, match=re.escape(f"nothing is at {folder / 'gone.json'}")) as error:
        store.publish("learngene", "a", folder, {})
    one_line(error)
    assert store.objects.find("learngenes") == []


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

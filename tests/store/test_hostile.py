"""Damaged and hostile content is refused by name, and nothing is written outside the target."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from ray_learngene.errors import UserError
from ray_learngene.manifest import FileEntry, version_of
from ray_learngene.store import Store
from tests.store.folders import WEIGHTS, contents, one_line


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

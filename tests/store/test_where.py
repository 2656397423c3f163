"""Where a store is."""

import pickle
from pathlib import Path

import pytest

from ray_learngene.errors import UserError
from ray_learngene.io.filesystems import filesystem, locate
from ray_learngene.store.store import Store
from tests.conftest import S3Server
from tests.store.folders import one_line


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

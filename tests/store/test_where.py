"""Where a store is."""

import importlib.util
import pickle
import sys
from pathlib import Path

import pytest

from ray_learngene.errors import UserError
from ray_learngene.io.filesystems import filesystem
from ray_learngene.io.schemes import locate
from ray_learngene.store.store import Store
from tests.clouds import KEY
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
    if store.objects.scheme == "memory":
        with pytest.raises(UserError, match="Ray cannot keep its state at memory://: keep the store in a local folder"):
            store.ray_storage("first")
        return
    path, storage = store.ray_storage("first")
    if storage is None:
        assert path == f"{store.uri}/runs"
        return
    assert f"{store.objects.scheme}://{path}" == f"{store.uri}/runs"
    pickled = pickle.dumps(storage)
    for secret in (s3_server.secret, s3_server.access_key, KEY):
        assert secret.encode() not in pickled
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


@pytest.mark.parametrize("uri", ["ggs://bucket/a", "zip://a", "://a"])
def test_unknown_schemes_are_refused(uri: str) -> None:
    with pytest.raises(
        UserError, match="is not supported: give a local path, s3://bucket/prefix, gs://bucket"
    ) as error:
        Store(uri)
    one_line(error)


def test_an_empty_address_is_not_the_current_folder() -> None:
    with pytest.raises(UserError, match="an empty address: name a folder or a URI"):
        Store("")


def test_aliases_of_a_scheme_are_one_place() -> None:
    assert Store("s3a://bucket/a").uri == "s3://bucket/a"
    assert locate("gcs://bucket//a/") == ("gs", "bucket/a")
    assert locate("az://container/a") == locate("abfss://container/a") == ("abfs", "container/a")
    assert locate("abfs://box@account.dfs.core.windows.net/a") == ("abfs", "box@account.dfs.core.windows.net/a")


@pytest.mark.parametrize("uri", ["gs://me:hidden@bucket/a", "gs://bucket/a?hidden", "hf://datasets/../hidden"])
def test_misread_addresses_are_refused_without_an_echo(uri: str) -> None:
    with pytest.raises(UserError, match="not an address: write (gs|hf)://place/path") as error:
        Store(uri)
    assert "hidden" not in one_line(error)


def test_a_missing_client_is_named_with_what_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for uri, package in (
        ("gs://a/b", r"'ray_learngene\[gcs\]'"), ("az://a/b", r"'ray_learngene\[azure\]'"), ("oci://a/b", "ocifs"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=f"needs the package \\w+: pip install {package}") as error:
            Store(uri)
        one_line(error)


def test_what_a_client_of_fsspec_needs_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "paramiko", None)
    for uri, says in (
        ("sftp://host/a", 'sftp:// needs a package that is not installed: .*"paramiko"'),
        ("github://host/a", "cannot be opened: set its --storage-options .*missing.*'org'"),
    ):
        with pytest.raises(UserError, match=says) as error:
            Store(uri).check(write=False)
        one_line(error)


def test_a_place_that_cannot_be_reached_is_one_line() -> None:
    """Without a network: the hub's client is switched off for tests, and nothing listens at the other."""
    for uri, says in (
        ("hf://datasets/a/b", "hf://datasets/a/b"),
        ("ftp://127.0.0.1:1/a", "no answer from the server of ftp://"),
    ):
        with pytest.raises(UserError, match=says) as error:
            Store(uri, retry_seconds=0).check(write=False)
        one_line(error)


def test_a_store_that_can_only_be_read_is_said_to_be_so_before_any_work() -> None:
    with pytest.raises(
        UserError, match="hf:// can only be read here: keep the store in a local folder, s3://"
    ) as error:
        Store("hf://datasets/a/b").check(write=True)
    one_line(error)


@pytest.mark.parametrize("uri", ["s3://", "s3://key:hidden@bucket/a", "s3://bucket/a?secret_key=hidden", "s3://b/../a"])
def test_misread_s3_addresses_are_refused_without_an_echo(uri: str) -> None:
    with pytest.raises(UserError, match="write s3://bucket/prefix") as error:
        Store(uri)
    assert "hidden" not in one_line(error)

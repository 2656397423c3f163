"""What other clients of fsspec could do to a store, and do not."""

from __future__ import annotations

import base64
import json
import socket
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from ray_learngene.errors import UserError
from ray_learngene.io import fsspec_backend, s3_settings
from ray_learngene.io.errors import Unavailable
from ray_learngene.io.options import VARIABLE
from ray_learngene.store.store import Store
from tests.store.folders import contents, one_line


@pytest.fixture
def memory_store(folder: Path) -> Store:
    store = Store(f"memory://{uuid.uuid4().hex}/store", retry_seconds=0)
    store.publish("learngene", "a", folder, {})
    return store


def test_a_short_range_is_never_taken_for_whole(
    memory_store: Store, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fsspec_backend, "RANGE_BYTES", 1000)
    whole: Callable[..., bytes] = MemoryFileSystem.cat_file

    def half(self: MemoryFileSystem, path: str, start: int, end: int, **kwargs: Any) -> bytes:
        data = whole(self, path, start, end)
        return data[: len(data) // 2] if "model.safetensors" in path else data

    with monkeypatch.context() as patched:
        patched.setattr(MemoryFileSystem, "cat_file", half)
        with pytest.raises(Unavailable, match="no answer from this process"):
            memory_store.download("learngene", "a", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert contents(memory_store.download("learngene", "a", tmp_path / "out")) == contents(folder)


def test_an_interrupted_download_goes_on_where_it_stopped(
    memory_store: Store, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fsspec_backend, "RANGE_BYTES", 1000)
    weights = (folder / "model.safetensors").read_bytes()
    partial = tmp_path / "out.partial"
    partial.mkdir()
    (partial / ".pull-lock").touch()
    (partial / "model.safetensors").write_bytes(weights[:250_000])
    asked = []
    whole: Callable[..., bytes] = MemoryFileSystem.cat_file

    def noting(self: MemoryFileSystem, path: str, start: int, end: int, **kwargs: Any) -> bytes:
        asked.append((path.rpartition("/")[2], start))
        return whole(self, path, start, end)

    monkeypatch.setattr(MemoryFileSystem, "cat_file", noting)
    assert contents(memory_store.download("learngene", "a", tmp_path / "out")) == contents(folder)
    assert min(start for name, start in asked if name == "model.safetensors") == 250_000


def test_large_objects_are_read_whole(memory_store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fsspec_backend, "RANGE_BYTES", 1000)
    monkeypatch.setattr(fsspec_backend, "FIRST_BYTES", 700)
    for size in (0, 699, 700, 701, 1700, 12_345):
        data = bytes(n % 251 for n in range(size))
        memory_store.objects.put("x", data)
        assert memory_store.objects.read("x") == data
        assert memory_store.objects.storage.read("x", 600) == data[:600]
        assert memory_store.objects.storage.read("x", 900) == data[:900]


def test_whatever_a_client_raises_is_one_line(memory_store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    class OfAnotherLibrary(Exception):
        pass

    def raises(*args: Any, **kwargs: Any) -> None:
        raise OfAnotherLibrary("two\nlines")

    for method in ("cat_file", "info", "find", "ls", "pipe_file", "rm_file"):
        monkeypatch.setattr(MemoryFileSystem, method, raises)
    objects = memory_store.objects
    for use in (
        lambda: objects.read("a"),
        lambda: objects.exists("a"),
        lambda: objects.look("a"),
        lambda: objects.check(write=False),
        lambda: objects.put("a", b""),
        lambda: objects.delete("a"),
    ):
        with pytest.raises(UserError, match="cannot be read or written: OfAnotherLibrary: two lines") as error:
            use()
        one_line(error)


def test_names_with_patterns_are_names(memory_store: Store) -> None:
    objects = memory_store.objects
    for name in ("s[1]*", "s1abc", "q?x", "a#b", "50%"):
        objects.put(f"texts/{name}", name.encode())
    objects.delete("texts/s[1]*")
    assert objects.find("texts") == ["texts/50%", "texts/a#b", "texts/q?x", "texts/s1abc"]
    assert objects.read("texts/q?x") == b"q?x"


@pytest.mark.clouds
@pytest.mark.parametrize("scheme", ["gs", "abfs"])
def test_a_server_that_never_answers_is_given_up(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setattr(s3_settings, "CONNECT_SECONDS", 1)
        monkeypatch.setattr(s3_settings, "REQUEST_SECONDS", 1)
        monkeypatch.setattr(fsspec_backend, "LIST_SECONDS", 1)
        monkeypatch.setattr(fsspec_backend, "LEAST_PER_SECOND", 2**30)
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", endpoint)
        monkeypatch.setenv(VARIABLE, json.dumps({"gs://": {"token": "anon"}}))
        key = base64.b64encode(b"key").decode()
        text = f"DefaultEndpointsProtocol=http;AccountName=x;AccountKey={key};BlobEndpoint={endpoint}/x"
        monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", text)
        objects = Store(f"{scheme}://bucket/store", retry_seconds=0).objects
        for use in (
            lambda: objects.check(write=False),
            lambda: objects.read("a"),
            lambda: objects.put("a", b"x"),
            lambda: objects.create("a", b"x"),
            lambda: objects.look(""),
        ):
            with pytest.raises(Unavailable, match="no answer from") as error:
                use()
            one_line(error)
            assert key not in str(error.value)


@pytest.mark.clouds
@pytest.mark.parametrize(
    ("text", "reason"),
    [("{}", "'refresh_token' is missing there"), ("no JSON", "Expecting value"), (None, "Is a directory")],
    ids=["no key", "no JSON", "a folder"],
)
def test_a_broken_key_file_of_google_is_one_line(
    text: str | None, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = tmp_path if text is None else tmp_path / "key.json"
    if text is not None:
        key.write_text(text)
    monkeypatch.setenv(VARIABLE, json.dumps({"gs://bucket": {"token": str(key)}}))
    with pytest.raises(UserError, match=f"^gs://bucket/x cannot be opened: set GOOGLE_.*{reason}"):
        fsspec_backend.open_filesystem("gs", "bucket/x")

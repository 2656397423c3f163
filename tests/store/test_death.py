"""A process dies between any two writes: readers see the old or the new, whole; the same command again succeeds."""

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from ray_learngene.errors import UserError
from ray_learngene.store.gc import find_garbage
from ray_learngene.store.store import Store
from tests.conftest import S3Server
from tests.store.folders import contents, make_folder
from tests.store.processes import DEAD, DONE, OPERATIONS, start
from tests.store.proxy import Proxy, Request

OLD = {"model.safetensors": b"old", "config.json": b"{}", "old.txt": b"gone later"}
NEW = {"model.safetensors": b"new weights", "config.json": b"{}", "plots/a.svg": b"<svg/>"}
# What is there before, and what may be seen after, a death in each operation.
CASES: dict[str, tuple[bool, list[dict[str, bytes] | None]]] = {
    "publish": (False, [None, NEW]),
    "overwrite": (True, [OLD, NEW]),
    "replace": (True, [OLD, NEW]),
    "remove": (True, [OLD, None]),
}


def prepare(operation: str, store: Store, old: Path) -> None:
    """Nothing, or the old artefact."""
    store.remove("descendant", "s/a")
    if CASES[operation][0]:
        store.publish("descendant", "s/a", old, {"row": {"top1": 1.0}})


def state(store: Store, out: Path) -> dict[str, bytes] | None:
    """Return what a reader gets; the index must say the same."""
    there = store.exists("descendant", "s/a")
    assert [entry.name for entry in store.entries(["descendant"])] == (["s/a"] if there else [])
    if not there:
        return None
    shutil.rmtree(out, ignore_errors=True)
    return contents(store.download("descendant", "s/a", out))


def verify(operation: str, store: Store, folder: Path, out: Path) -> None:
    """Old or new; the same again makes it new; what is left over is found, and nothing else."""
    allowed = CASES[operation][1]
    seen = state(store, out)
    assert seen in allowed
    try:
        OPERATIONS[operation](store, folder, out)
    except UserError as error:
        assert operation == "publish" and seen == NEW and "already taken" in str(error)
    assert state(store, out) == allowed[1]
    for one in find_garbage(store, datetime.now(UTC) + timedelta(hours=1)):
        assert one.still()
        one.delete()
    assert state(store, out) == allowed[1]
    left = {path for path in store.objects.find("") if not path.startswith(("index/", "store.json", "learngenes/"))}
    manifest = store.look_up("descendant", "s/a")
    named = {f"{manifest.base}/{entry.path}" for entry in manifest.files} if manifest else set()
    assert left == named | ({"descendants/s/a/manifest.json"} if manifest else set())


@pytest.mark.parametrize("operation", CASES)
def test_death_at_every_write_to_a_local_store(operation: str, tmp_path: Path) -> None:
    folder, old = make_folder(tmp_path / "new", NEW), make_folder(tmp_path / "old", OLD)
    root = tmp_path / "store"
    store = Store(str(root))
    for writes in range(200):
        prepare(operation, store, old)
        process = start(operation, store.uri, folder, tmp_path / "out", root=root, writes=writes)
        process.join(60)
        if process.exitcode == DONE:
            break
        assert process.exitcode == DEAD
        verify(operation, store, folder, tmp_path / "read")
    assert writes >= 6
    assert state(store, tmp_path / "read") == CASES[operation][1][1]


@pytest.mark.parametrize("operation", ["download", "download again"])
def test_death_at_every_write_of_a_download(operation: str, tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"))
    store.publish("descendant", "s/a", make_folder(tmp_path / "new", NEW), {})
    target = tmp_path / "target"
    for writes in range(200):
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir()
        if operation == "download again":
            make_folder(target / "out", {"config.json": b"mine"})
        process = start(operation, store.uri, tmp_path, target / "out", root=target, writes=writes)
        process.join(60)
        if process.exitcode == DONE:
            break
        assert process.exitcode == DEAD
        if (target / "out").exists():
            assert contents(target / "out") in ({"config.json": b"mine"}, NEW)
        assert contents(store.download("descendant", "s/a", target / "out", overwrite=True)) == NEW
        assert [path.name for path in target.iterdir()] == ["out"]
    assert writes >= 6
    assert contents(target / "out") == NEW


@pytest.fixture
def proxy(s3_env: Callable[[], str], s3_server: S3Server) -> Iterator[Proxy]:
    made = Proxy(s3_server.endpoint)
    yield made
    made.close()


@pytest.mark.parametrize("operation", ["publish", "overwrite"])
def test_death_after_every_write_to_s3(
    operation: str,
    s3_env: Callable[[], str],
    proxy: Proxy,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder, old = make_folder(tmp_path / "new", NEW), make_folder(tmp_path / "old", OLD)
    store = Store(f"{s3_env()}/store")
    store.publish("learngene", "other", folder, {})  # opens the store, past the proxy
    for writes in range(1, 50):
        prepare(operation, store, old)
        written: list[Request] = []
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        process = start(operation, store.uri, folder, tmp_path / "out")

        def kill(request: Request, process=process, written=written, writes=writes) -> None:  # type: ignore[no-untyped-def]
            if request.writes:
                written.append(request)
            if len(written) >= writes:
                os.kill(process.pid, signal.SIGKILL)

        proxy.after = kill
        process.join(60)
        proxy.after = lambda request: None
        if process.exitcode == DONE:
            break
        assert process.exitcode == -signal.SIGKILL
        verify(operation, store, folder, tmp_path / "read")
    assert writes >= 3

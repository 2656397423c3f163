"""A manifest whose fate is not known: what is there decides, and an artefact that exists keeps its files."""

import logging
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from ray_learngene.cli.main import main
from ray_learngene.errors import UserError
from ray_learngene.io import retry
from ray_learngene.store.checkpoints import StoreCheckpoints
from ray_learngene.store.manifest import GROUPED, Kind
from ray_learngene.store.store import NameTaken, Store
from ray_learngene.store.sweeps import SETTINGS, read_settings, sweep_file
from tests.conftest import S3Server
from tests.store.folders import contents, make_folder
from tests.store.proxy import Fault, Proxy, Request

ROW: dict[str, Any] = {
    "row": {
        **{"descendant": "a", "sweep": "s", "status": "finished", "arm": "sws", "width": 8, "depth": 1, "image": 8},
        **{"seed": 0, "lr": 1e-3, "params": 1, "macs": 1, "memory": 1, "latency": 1.0, "seconds": 1.0},
        **{"top1": 1.0, "top1_untuned": 1.0, "top1_epoch1": 1.0},
    }
}


@pytest.fixture
def proxy(s3_env: Callable[[], str], s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    monkeypatch.setattr(retry, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(retry, "LONGEST_PAUSE", 0.05)
    made = Proxy(s3_server.endpoint)
    monkeypatch.setenv("AWS_ENDPOINT_URL", made.endpoint)
    yield made
    made.close()


@pytest.fixture
def s3_store(s3_env: Callable[[], str], proxy: Proxy) -> Store:
    """A store behind the proxy that is in use already."""
    store = Store(f"{s3_env()}/store", retry_seconds=0.2)
    assert store.create_text("used.txt", "x")
    return store


def of_manifests(*faults: Fault | None) -> Callable[[Request], Fault | None]:
    """Faults of the writes of a manifest, one after another; the last one stays."""
    left = list(faults)

    def fault(request: Request) -> Fault | None:
        if request.method != "PUT" or not request.path.split("?")[0].endswith("/manifest.json"):
            return None
        return left.pop(0) if len(left) > 1 else left[0]

    return fault


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize(
    ("status", "code"),
    [
        *(
            (400, ""),
            (403, "AccessDenied"),
            (409, ""),
            (409, "ConditionalRequestConflict"),
            (412, "PreconditionFailed"),
        ),
        *((412, ""), (429, ""), (503, "SlowDown")),
    ],
)
def test_a_manifest_that_was_written_is_published_whatever_the_server_says(
    s3_store: Store, proxy: Proxy, folder: Path, tmp_path: Path, status: int, code: str, overwrite: bool
) -> None:
    if overwrite:
        s3_store.publish("learngene", "a", make_folder(tmp_path / "old", {"config.json": b"old"}), {})
    proxy.fault = of_manifests("lose", status)
    proxy.body = f"<Error><Code>{code}</Code></Error>".encode() if code else b""
    manifest = s3_store.publish("learngene", "a", folder, {}, overwrite=overwrite)
    proxy.fault = lambda request: None
    assert s3_store.manifest("learngene", "a") == manifest
    assert contents(s3_store.download("learngene", "a", tmp_path / "out")) == contents(folder)
    assert [entry.version for entry in s3_store.entries()] == [manifest.version]


@pytest.mark.parametrize("status", [400, 403, 409, 429])
@pytest.mark.parametrize("kind", ["ancestry", "descendant", "softlabels", "timing"])
def test_so_is_every_kind_of_artefact(
    s3_store: Store, proxy: Proxy, folder: Path, tmp_path: Path, kind: Kind, status: int
) -> None:
    name = "group/a" if kind in GROUPED else "a"
    proxy.fault = of_manifests("lose", status)
    s3_store.publish(kind, name, folder, ROW)
    proxy.fault = lambda request: None
    assert s3_store.exists(kind, name)
    assert contents(s3_store.download(kind, name, tmp_path / "out")) == contents(folder)
    if kind == "descendant":
        assert s3_store.rows("group") == [ROW["row"]]


@pytest.mark.parametrize("status", [400, 403, 409, 429])
def test_a_checkpoint_that_was_written_is_continued_from(s3_store: Store, proxy: Proxy, status: int) -> None:
    checkpoints = StoreCheckpoints(s3_store, "run/state")
    for step in ("1", "2"):  # the second replaces the first
        proxy.fault = of_manifests("lose", status)
        checkpoints.save(lambda folder, step=step: (folder / "step").write_text(step), {})  # type: ignore[misc]
        proxy.fault = lambda request: None
        with checkpoints.latest() as found:
            assert found is not None and (found / "step").read_text() == step


@pytest.mark.parametrize("status", [400, 403, 409, 429])
def test_a_file_of_a_sweep_that_was_written_is_whole(s3_store: Store, proxy: Proxy, status: int) -> None:
    """A run again finds it, and writes it again."""
    left: list[Fault] = ["lose", status]
    proxy.fault = lambda request: left.pop(0) if left and "sweep.json" in request.path else None
    path = sweep_file("s", SETTINGS)
    with suppress(UserError):
        s3_store.write_text(path, '{"common": {"arm": "sws"}}')
    assert not left
    settings = read_settings(s3_store, "s")
    assert settings is not None and settings["common"] == {"arm": "sws"}
    s3_store.write_text(path, '{"common": {"arm": "tleg"}}')
    settings = read_settings(s3_store, "s")
    assert settings is not None and settings["common"] == {"arm": "tleg"}


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("fault", ["late", 403, 503])
def test_files_stay_where_the_manifest_may_still_come(
    s3_store: Store, proxy: Proxy, folder: Path, tmp_path: Path, fault: Fault, overwrite: bool
) -> None:
    old = make_folder(tmp_path / "old", {"config.json": b"old"})
    if overwrite:
        s3_store.publish("learngene", "a", old, {})
    proxy.fault = of_manifests(fault)
    with pytest.raises(UserError, match="is denied|overloaded") as error:
        s3_store.publish("learngene", "a", folder, {}, overwrite=overwrite)
    assert not isinstance(error.value, NameTaken)
    proxy.deliver()
    proxy.fault = lambda request: None
    if fault == "late":
        assert contents(s3_store.download("learngene", "a", tmp_path / "out")) == contents(folder)
    elif overwrite:
        assert contents(s3_store.download("learngene", "a", tmp_path / "out")) == contents(old)
    else:
        assert not s3_store.exists("learngene", "a")
        s3_store.publish("learngene", "a", folder, {})


@pytest.mark.parametrize("then", [None, 403, 503])
def test_files_go_where_another_publisher_was_faster(
    s3_store: Store, proxy: Proxy, folder: Path, tmp_path: Path, then: Fault | None
) -> None:
    other, theirs = Store(s3_store.uri), make_folder(tmp_path / "other", {"config.json": b"other"})
    refused = of_manifests(503, then)

    def fault(request: Request) -> Fault | None:
        found = refused(request)
        if found == 503 and not other.exists("learngene", "a"):
            proxy.fault = lambda request: None
            other.publish("learngene", "a", theirs, {})
            proxy.fault = refused
        return found

    proxy.fault = fault
    with pytest.raises(NameTaken, match="already taken"):
        s3_store.publish("learngene", "a", folder, {})
    manifest = s3_store.manifest("learngene", "a")
    assert s3_store.objects.find("learngenes") == [f"{manifest.base}/config.json", "learngenes/a/manifest.json"]
    assert contents(s3_store.download("learngene", "a", tmp_path / "out")) == contents(theirs)


@pytest.fixture
def broken(store: Store, folder: Path) -> Store:
    """A store with a broken artefact of each kind, and a whole one."""
    store.publish("ancestry", "whole", folder, {})
    for kind, name in (("learngene", "a"), ("descendant", "s/a"), ("checkpoint", "run/state")):
        manifest = store.publish(kind, name, folder, ROW)  # type: ignore[arg-type]
        store.objects.delete(f"{manifest.base}/config.json")
    return store


def test_broken_artefacts_are_named(broken: Store, capsys: pytest.CaptureFixture[str]) -> None:
    assert [(entry.kind, entry.name) for entry in broken.broken()] == [("learngene", "a"), ("descendant", "s/a")]
    assert main(["list", "--check", "--store", broken.uri]) == 2
    told = capsys.readouterr()
    assert "files are missing of learngenes/a, descendants/s/a: run the commands that made them" in told.err
    assert "ancestries/whole" in told.out
    assert main(["gc", "--store", broken.uri]) == 0
    told = capsys.readouterr()
    assert f"learngene a in {broken.uri} is broken" in told.err and "descendant s/a" in told.err
    assert "whole" not in told.out


def test_broken_artefacts_are_made_again(
    broken: Store, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert broken.rows("s") == []
    with caplog.at_level(logging.WARNING, "ray_learngene"):
        assert not broken.exists("learngene", "a")
    assert "config.json" in caplog.text
    with StoreCheckpoints(broken, "run/state").latest() as found:
        assert found is None
    for kind, name in (("learngene", "a"), ("descendant", "s/a"), ("checkpoint", "run/state")):
        broken.publish(kind, name, folder, ROW)  # type: ignore[arg-type]
        assert contents(broken.download(kind, name, tmp_path / kind)) == contents(folder)  # type: ignore[arg-type]
        with pytest.raises(NameTaken):
            broken.publish(kind, name, folder, ROW)  # type: ignore[arg-type]
    assert broken.broken() == [] and broken.rows("s") == [ROW["row"]]
    assert main(["list", "--check", "--store", broken.uri]) == 0


def test_an_overwritten_artefact_that_lost_its_files_is_broken_although_the_old_ones_are_there(
    store: Store, folder: Path
) -> None:
    store.publish("learngene", "a", folder, {})
    new = store.publish("learngene", "a", folder, {}, overwrite=True)
    store.objects.delete_many(f"{new.base}/{entry.path}" for entry in new.files)
    assert [entry.name for entry in store.broken()] == ["a"] and not store.exists("learngene", "a")

"""The index says what the manifests say, whatever happened, and asks no more of the storage where there is more."""

import json
import logging
import shutil
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ray_learngene.cli.catalog import print_list
from ray_learngene.cli.choose import select_descendant
from ray_learngene.cli.show import print_artefact
from ray_learngene.config import ListConfig, PullConfig, ShowConfig
from ray_learngene.errors import UserError
from ray_learngene.io.objects import Objects
from ray_learngene.store import index
from ray_learngene.store.costs import costed_rows
from ray_learngene.store.index import NOTES, SNAPSHOTS, Index
from ray_learngene.store.store import Store
from tests.conftest import S3Server
from tests.store.folders import make_folder, one_line, publish, row
from tests.store.proxy import Proxy


def seen(store: Store) -> dict[str, str]:
    return {entry.name: entry.version + entry.created for entry in store.entries()}


def there(store: Store) -> dict[str, str]:
    return {one.name: one.version + one.created for kind in index.KINDS for one in store.manifests(kind)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "folder", {"config.json": b"{}"})


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three notes are many."""
    monkeypatch.setattr(index, "MANY_NOTES", 3)


class Death(BaseException):
    """The publisher dies."""


def dying(store: Store, operation: Callable[[], object], writes: int) -> None:
    """Make an operation die after so many writes to the store."""
    left = [writes]

    def counted(write: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **options: Any) -> Any:
            if left[0] == 0:
                raise Death
            left[0] -= 1
            return write(*arguments, **options)

        return wrapped

    names = ("put", "create", "upload", "delete")
    for name in names:
        setattr(store.objects, name, counted(getattr(store.objects, name)))
    try:
        operation()
    except Death:
        pass
    finally:
        for name in names:
            delattr(store.objects, name)


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["publish", "overwrite", "remove", "read", "rebuild", "a day passes"]),
        st.sampled_from(["s/a", "s/b", "t/a", "t/c"]),
        st.one_of(st.none(), st.integers(0, 3)),  # writes before it dies
    ),
    max_size=25,
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS)
def test_the_index_equals_the_manifests_whatever_happened(
    steps: list[tuple[str, str, int | None]], tmp_path: Path, folder: Path, few: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "store"
    shutil.rmtree(root, ignore_errors=True)
    store = Store(str(root))
    # As on S3: the index alone, without a look at the folders.
    monkeypatch.setattr(Index, "completed", lambda self, known, there: known)
    monkeypatch.setattr(index, "FORGOTTEN", timedelta(days=1))
    for number, (what, name, death) in enumerate(steps):
        operations: dict[str, Callable[[], object]] = {
            "publish": lambda name=name, n=number: publish(store, folder, name, n),
            "overwrite": lambda name=name, n=number: publish(store, folder, name, n, overwrite=True),
            "remove": lambda name=name: store.remove("descendant", name),
            "read": store.entries,
            "rebuild": store.index.rebuild,
            "a day passes": lambda: monkeypatch.setattr(index, "FORGOTTEN", timedelta(0)),
        }
        operation = operations[what]
        try:
            if death is None:
                operation()
            else:
                dying(store, operation, death)
        except UserError as error:
            assert "already taken" in str(error)
        assert seen(store) == there(store), (number, what)


def test_two_that_make_the_next_snapshot_at_once_lose_nothing(
    store: Store, folder: Path, few: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("s/a", "s/b", "s/c"):
        publish(store, folder, name)
    store.entries()
    create = Objects.create
    meanwhile = [True]

    def another_first(self: Objects, path: str, data: bytes) -> bool:
        if path.startswith(SNAPSHOTS) and meanwhile:
            meanwhile.clear()
            publish(Store(store.uri), folder, "s/g")
            Store(store.uri).entries()
        return create(self, path, data)

    for name in ("s/d", "s/e", "s/f"):
        publish(store, folder, name)
    monkeypatch.setattr(Objects, "create", another_first)
    assert [entry.name for entry in store.entries()][-3:] in (["s/d", "s/e", "s/f"], ["s/e", "s/f", "s/g"])
    assert not meanwhile
    assert seen(store) == there(store)
    assert len(seen(store)) == 7


def test_a_manifest_written_after_the_next_snapshot_was_made_keeps_its_note(
    store: Store, folder: Path, few: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("s/a", "s/b", "s/c"):
        publish(store, folder, name)
    store.entries()
    note = Index.note

    def slow(self: Index, *arguments: Any) -> str:
        """Between the note and the manifest, others publish and make the next snapshot."""
        path = note(self, *arguments)
        monkeypatch.setattr(Index, "note", note)
        for name in ("s/d", "s/e", "s/f"):
            publish(Store(store.uri), folder, name)
        Store(store.uri).entries()
        return path

    monkeypatch.setattr(Index, "note", slow)
    publish(store, folder, "s/slow")
    assert "s/slow" in seen(store)
    assert seen(store) == there(store)


def test_notes_become_a_snapshot_and_go(store: Store, folder: Path, few: None) -> None:
    for name in ("s/a", "s/b", "t/a"):
        publish(store, folder, name)
    assert len(store.objects.find(NOTES)) == 3
    assert [entry.name for entry in store.entries(under="s")] == ["s/a", "s/b"]
    assert store.objects.find("index") == [f"{SNAPSHOTS}/00000001.parquet"]
    store.remove("descendant", "s/a")
    publish(store, folder, "s/b", 2.0, overwrite=True)
    assert {entry.name: entry.facts["top1"] for entry in store.entries()} == {"s/b": 2.0, "t/a": 1.0}


def parquet(table: pyarrow.Table) -> bytes:
    buffer = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(table, buffer)
    return buffer.getvalue().to_pybytes()


NULLS = pyarrow.table([pyarrow.nulls(1, field.type) for field in index.SCHEMA], schema=index.SCHEMA)


@pytest.mark.parametrize("damage", [b"", b"not Parquet", parquet(pyarrow.table({"a": [1]})), parquet(NULLS), None])
def test_a_damaged_or_missing_snapshot_is_no_loss(
    store: Store, folder: Path, few: None, damage: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("s/a", "s/b", "s/c", "s/d"):
        publish(store, folder, name)
    store.entries()
    path = f"{SNAPSHOTS}/00000001.parquet"
    if damage is None:
        store.objects.delete(path)
    else:
        store.objects.put(path, damage)
    with caplog.at_level(logging.WARNING, "ray_learngene"):
        assert seen(store) == there(store)
    assert ("is damaged or old, so all manifests are read" in caplog.text) == (damage is not None)
    assert max(store.objects.find(SNAPSHOTS)) > path or damage is None
    assert seen(store) == there(store)


def test_a_store_without_an_index_gets_one(store: Store, folder: Path, few: None) -> None:
    for name in ("s/a", "s/b", "s/c", "s/d"):
        publish(store, folder, name)
    store.remove_tree("index")
    assert seen(store) == there(store)
    assert len(store.objects.find(SNAPSHOTS)) == 1


def test_a_reader_who_may_not_write_reads_all_the_same(
    s3_env: Callable[[], str], s3_server: S3Server, folder: Path, few: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = s3_env()
    for name in ("s/a", "s/b", "s/c"):
        publish(Store(uri), folder, name)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3_server.reader_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3_server.reader_secret)
    reader = Store(uri)
    assert seen(reader) == there(reader)
    assert reader.objects.find(SNAPSHOTS) == []


def test_what_was_done_by_hand_is_seen_after_a_rebuild(
    store: Store, folder: Path, few: None, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("s/a", "s/b", "s/c"):
        publish(store, folder, name)
    store.entries()
    copied = json.loads(store.objects.read("descendants/s/a/manifest.json") or b"")
    for found in store.objects.find("descendants/s/a"):
        store.objects.put(found.replace("/s/a/", "/s/copy/"), store.objects.read(found) or b"")
    store.objects.put("descendants/s/copy/manifest.json", json.dumps({**copied, "name": "s/copy"}).encode())
    store.objects.delete("descendants/s/b/manifest.json")
    wanted = ["s/a", "s/c", "s/copy"]
    # Results of a sweep never rest on the index alone.
    assert len(costed_rows(store, "s")) == 3
    print_list(ListConfig(store=store.uri, rebuild=True))
    assert "rebuilt from 3 manifests" in capsys.readouterr().out
    assert [entry.name for entry in store.entries()] == wanted


@pytest.mark.parametrize(
    "change", [{"top1": "98"}, {"params": 10**400}, {"top1": float("nan")}, {"depth": [3]}, {"arm": "x" * 2000}]
)
def test_an_odd_row_is_named_and_left_out(
    store: Store, folder: Path, caplog: pytest.LogCaptureFixture, change: dict[str, Any]
) -> None:
    publish(store, folder, "s/good", 50.0)
    odd = row(99.0)
    odd["row"] |= change
    store.publish("descendant", "s/odd", folder, odd)
    with caplog.at_level(logging.WARNING, "ray_learngene"):
        assert len(costed_rows(store, "s")) == 1
    assert f"left out: the row of descendants/s/odd ({next(iter(change))}: " in caplog.text
    print_list(ListConfig(store=store.uri))
    if next(iter(change)) in ("top1", "params"):
        assert select_descendant(PullConfig(store=store.uri, max_params="1M"), store).name == "s/good"


@pytest.mark.parametrize("text", ["{", "[]", '{"budgets": 3}'])
def test_damaged_settings_of_a_sweep_are_named(store: Store, text: str) -> None:
    store.write_text("sweeps/s/sweep.json", text)
    with pytest.raises(UserError, match=r"sweeps/s/sweep.json is damaged \(.*\): delete it") as error:
        print_artefact(ShowConfig(store=store.uri, artefact="sweeps/s"))
    one_line(error)


def test_a_sweep_without_a_finished_descendant_is_shown(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    store.write_text("sweeps/s/sweep.json", json.dumps({"budgets": {}}))
    print_artefact(ShowConfig(store=store.uri, artefact="sweeps/s"))
    assert capsys.readouterr().out == "no descendant has finished yet\n"


@pytest.mark.parametrize(
    ("classes", "shown"), [(10, "classes     10, without names"), (0, "classes     none: features")]
)
def test_classes_without_names_are_counted(
    store: Store, folder: Path, capsys: pytest.CaptureFixture[str], classes: int, shown: str
) -> None:
    """As of a learngene that was distilled from a teacher without names, and without labels."""
    store.publish("learngene", "g", folder, {"labels": [], "spec": {"width": 8, "classes": classes}})
    assert store.entries()[0].facts["classes"] == classes
    print_artefact(ShowConfig(store=store.uri, artefact="learngenes/g"))
    assert shown in capsys.readouterr().out


def test_a_damaged_manifest_hides_no_other(store: Store, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("s/a", "s/b"):
        publish(store, folder, name)
    store.objects.put("descendants/s/a/manifest.json", b"{")
    with caplog.at_level(logging.WARNING, "ray_learngene"):
        assert [entry.name for entry in store.entries()] == ["s/b"]
    assert "left out: the manifest" in caplog.text and "s/a/manifest.json is not usable" in caplog.text


def test_requests_do_not_grow_with_the_number_of_descendants(
    s3_env: Callable[[], str], s3_server: S3Server, folder: Path, few: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = s3_env()
    proxy = Proxy(s3_server.endpoint)
    counts = []
    for many in (6, 24):
        store = Store(f"{uri}/{many}")
        store.objects.each([partial(publish, store, folder, f"s/{n}") for n in range(many)])
        store.entries()
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        before = len(proxy.requests)
        print_list(ListConfig(store=store.uri))
        assert select_descendant(PullConfig(store=store.uri, max_params="1M"), store).name.startswith("s/")
        counts.append(len(proxy.requests) - before)
        monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server.endpoint)
    proxy.close()
    assert counts[0] == counts[1]

"""The index says what the manifests say, whatever happened, and asks no more of the storage where there is more."""

import json
import logging
import shutil
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ray_learngene.cli.catalog import print_list
from ray_learngene.cli.pull import pull, select_descendant
from ray_learngene.cli.show import print_artefact
from ray_learngene.config import ListConfig, PullConfig, ShowConfig
from ray_learngene.errors import NothingWithin, UserError
from ray_learngene.io.objects import Objects
from ray_learngene.store import index
from ray_learngene.store.index import NOTES, SNAPSHOTS, Index
from ray_learngene.store.store import Store
from ray_learngene.sweeps.results import sweep_table
from tests.conftest import S3Server
from tests.store.folders import make_folder, one_line
from tests.store.proxy import Proxy


def row(top1: float, params: int = 1000) -> dict[str, Any]:
    costs = {"params": params, "macs": 10, "memory": 10, "latency": 1.0, "latency_device": "cpu"}
    size = {"width": 48, "depth": 3, "image": 8, "seed": 0, "lr": 1e-3}
    scores = {"top1": top1, "top1_untuned": top1, "top1_epoch1": top1, "seconds": 1.0}
    return {"row": {"descendant": "x", "sweep": "s", "status": "finished", "arm": "sws", **size, **costs, **scores}}


def publish(store: Store, folder: Path, name: str, top1: float = 1.0, **options: Any) -> None:
    store.publish("descendant", name, folder, row(top1), **options)


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
    assert len(sweep_table(store, "s")) == 3
    print_list(ListConfig(store=store.uri, rebuild=True))
    assert "rebuilt from 3 manifests" in capsys.readouterr().out
    assert [entry.name for entry in store.entries()] == wanted


def test_pull_takes_the_next_where_the_best_has_gone(store: Store, folder: Path, few: None) -> None:
    for name, top1 in (("s/a", 1.0), ("s/b", 3.0), ("s/c", 2.0), ("s/d", 4.0)):
        publish(store, folder, name, top1)
    config = PullConfig(store=store.uri, max_params="1M")
    assert select_descendant(config, store).name == "s/d"
    store.objects.delete("descendants/s/d/manifest.json")
    text = (store.objects.read("descendants/s/b/manifest.json") or b"").replace(b'"top1": 3.0', b'"top1": 1.5')
    stale = json.loads(text)
    stale["created"] = datetime.now(UTC).isoformat()
    store.objects.put("descendants/s/b/manifest.json", json.dumps(stale).encode())
    assert select_descendant(config, store).name == "s/c"
    for name in ("s/a", "s/b", "s/c"):
        store.objects.delete(f"descendants/{name}/manifest.json")
    with pytest.raises(UserError, match="no descendants in") as error:
        select_descendant(config, store)
    one_line(error)


def test_pull_of_a_descendant_that_a_script_of_its_own_published(
    store: Store, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store.publish("descendant", "mine/a", folder, {"row": {"top1": 81.5}})
    path = pull(PullConfig(store=store.uri, artefact="descendants/mine/a", out=str(tmp_path / "pulled")))
    assert {file.name for file in path.iterdir()} >= {file.name for file in folder.iterdir()}
    assert capsys.readouterr().out.count("\n") == 1
    with pytest.raises(UserError, match="no descendants in") as error:
        pull(PullConfig(store=store.uri, max_params="1M", out=str(tmp_path / "chosen")))
    one_line(error)


def test_descendants_of_different_label_sets_are_not_compared(store: Store, folder: Path) -> None:
    sets = {"digits/a": "d", "garments/a": "g", "garments/b": "g"}  # as many classes, and the garments are better
    for name, labels in sets.items():
        facts = row(float(ord(labels)))
        facts["row"] |= {"classes": 10, "labels": labels, "validation": labels, "data": name.split("/")[0]}
        store.publish("descendant", name, folder, facts)
    listed = r"different label sets \(10 classes of digits: digits; 10 classes of garments: garments\): choose"
    with pytest.raises(UserError, match=listed) as error:
        select_descendant(PullConfig(store=store.uri, max_params="1M"), store)
    one_line(error)
    assert select_descendant(PullConfig(store=store.uri, max_params="1M", sweep="digits"), store).name == "digits/a"
    by_data = PullConfig(store=store.uri, max_params="1M", data="/elsewhere/hats")
    assert select_descendant(by_data.model_copy(update={"data": "/elsewhere/garments"}), store).name.startswith(
        "garments/"
    )
    with pytest.raises(NothingWithin, match="no descendants on '/elsewhere/hats'"):
        select_descendant(by_data, store)
    facts["row"] |= {"classes": ["cat", "dog"], "labels": "d", "validation": "d"}  # a script's own word
    store.publish("descendant", "digits/b", folder, facts)
    assert select_descendant(PullConfig(store=store.uri, max_params="1M", sweep="digits"), store).name == "digits/b"


def test_other_validation_images_are_another_set(store: Store, folder: Path) -> None:
    for name, validation in (("s/a", "whole"), ("t/a", "half"), ("old/a", None)):
        facts = row(1.0)
        facts["row"] |= {"classes": 10, "labels": "d", **({"validation": validation} if validation else {})}
        store.publish("descendant", name, folder, facts)
    with pytest.raises(UserError, match="different label sets"):
        select_descendant(PullConfig(store=store.uri, max_params="1M"), store)
    store.remove("descendant", "t/a")  # an older row does not say what it was measured on: it joins the only set
    assert select_descendant(PullConfig(store=store.uri, max_params="1M"), store).name in ("s/a", "old/a")


def test_rows_that_do_not_say_their_labels_are_compared_with_none(store: Store, folder: Path) -> None:
    for name, facts in (("s/a", {"labels": "d", "validation": "v"}), ("old/a", {}), ("older/a", {"labels": "d"})):
        store.publish("descendant", name, folder, {"row": {**row(1.0)["row"], "classes": 10, "data": "x", **facts}})
    with pytest.raises(UserError, match=r"different label sets \(10 classes of x: older, s; 10 classes of x: old\)"):
        select_descendant(PullConfig(store=store.uri, max_params="1M"), store)
    assert select_descendant(PullConfig(store=store.uri, max_params="1M", sweep="old"), store).name == "old/a"


@pytest.mark.parametrize("other", [{"data": "elsewhere/y"}, {"labels": "e"}])
def test_older_rows_of_other_image_sets_or_labels_join_no_set(
    store: Store, folder: Path, other: dict[str, str]
) -> None:
    facts = {**row(1.0)["row"], "classes": 10, "data": "x", "labels": "d"}
    store.publish("descendant", "new/a", folder, {"row": {**facts, "validation": "v"}})
    store.publish("descendant", "old/a", folder, {"row": {**facts, **other}})
    with pytest.raises(UserError, match="different label sets"):
        select_descendant(PullConfig(store=store.uri, max_params="1M"), store)


def test_the_labels_of_a_manifest_overrule_those_of_its_row(store: Store, folder: Path) -> None:
    for name, top1 in (("s/a", 1.0), ("s/b", 2.0)):
        facts = {**row(top1)["row"], "classes": 10, "labels": "d", "validation": "v"}
        store.publish("descendant", name, folder, {"row": facts, "labels": ["cat", "dog"]})
        facts = {**facts, "classes": 12, "labels": "e"}
    store.publish("descendant", "s/c", folder, {"row": {**facts, "top1": 3.0}, "labels": ["cat", "dog"]})
    assert select_descendant(PullConfig(store=store.uri, sweep="s", max_params="1M"), store).name == "s/c"
    assert {entry.facts["classes"] for entry in store.entries()} == {2}


def test_latencies_are_compared_on_one_device_only(store: Store, folder: Path) -> None:
    for name, device, latency in (("s/a", "Arm", 9.0), ("t/a", "Xeon", 1.0)):
        facts = row(1.0)
        facts["row"] |= {"latency": latency, "latency_device": device, "latency_batch": 1, "latency_dtype": "float32"}
        store.publish("descendant", name, folder, facts)
    config = PullConfig(store=store.uri, max_latency="5ms")
    with pytest.raises(UserError, match=r"measured in different ways \(Arm, batch 1, float32: s; Xeon, .*\): choose"):
        select_descendant(config, store)
    assert select_descendant(config.model_copy(update={"device": "Xeon"}), store).name == "t/a"
    with pytest.raises(NothingWithin, match="the least latency is 9"):
        select_descendant(config.model_copy(update={"device": "Arm"}), store)
    assert select_descendant(PullConfig(store=store.uri, max_params="1M"), store) is not None


def test_sizes_outside_of_what_was_trained_are_the_last_choice(store: Store, folder: Path) -> None:
    for name, top1, outside in (("s/a", 90.0, "depth 2 is below 3"), ("s/b", 80.0, None)):
        facts = row(top1)
        facts["row"]["outside"] = outside
        store.publish("descendant", name, folder, facts)
    config = PullConfig(store=store.uri, max_params="1M")
    assert select_descendant(config, store).name == "s/b"
    store.remove("descendant", "s/b")
    assert select_descendant(config, store).name == "s/a"


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
        assert len(sweep_table(store, "s")) == 1
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

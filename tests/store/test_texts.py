"""Tables and texts of a store, and conditional creation."""

import json
import logging
import os
from pathlib import Path
from typing import Any

import pyarrow
import pytest

from ray_learngene.errors import UserError
from ray_learngene.io.objects import Objects
from ray_learngene.store.store import Store
from tests.store.folders import one_line


def test_tables_survive_the_round_trip(store: Store) -> None:
    table = pyarrow.table({"name": ["a", "b"], "top1": [0.5, None], "parameters": [10, 20]})
    store.write_table("sweeps/first/results.parquet", table)
    assert store.read_table("sweeps/first/results.parquet") == table
    store.write_table("sweeps/first/results.parquet", table.slice(1))
    assert store.read_table("sweeps/first/results.parquet") == table.slice(1)
    assert store.objects.find("sweeps") == ["sweeps/first/results.parquet"]
    with pytest.raises(UserError, match="there is no table .*sweeps/other.parquet"):
        store.read_table("sweeps/other.parquet")
    store.write_text("sweeps/first/results.parquet", "not Parquet")
    with pytest.raises(UserError, match="results.parquet cannot be read") as error:
        store.read_table("sweeps/first/results.parquet")
    one_line(error)


def test_a_text_is_created_once(store: Store) -> None:
    assert store.read_text("sweeps/first/sweep.json") is None
    assert store.create_text("sweeps/first/sweep.json", "{} é")
    assert not store.create_text("sweeps/first/sweep.json", "[]")
    assert store.read_text("sweeps/first/sweep.json") == "{} é"
    store.write_text("sweeps/first/sweep.json", "[]")
    assert store.read_text("sweeps/first/sweep.json") == "[]"
    assert json.loads(store.read_text("store.json") or "") == {"format": 1, "conditional_create": True}


@pytest.mark.parametrize("path", ["../out.txt", "/tmp/out.txt", "", "a/../../b"])
def test_paths_outside_the_store_are_refused(store: Store, path: str) -> None:
    with pytest.raises(UserError, match="is not a plain relative path"):
        store.write_text(path, "x")
    with pytest.raises(UserError, match="is not a plain relative path"):
        store.read_text(path)


def test_storage_without_conditional_writes_is_noticed_once(
    store_uri: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def ignores_the_condition(self: Objects, path: str, data: bytes) -> bool:
        self.put(path, data)
        return True

    monkeypatch.setattr(Objects, "_create", ignores_the_condition)
    store = Store(store_uri)
    with caplog.at_level(logging.WARNING, "ray_learngene"):
        assert store.create_text("a.txt", "1")
        assert not store.create_text("a.txt", "2")
        assert Store(store_uri).create_text("b.txt", "1")
    assert store.read_text("a.txt") == "1"
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "two publishers of one name at once overwrite each other, so publish" in caplog.text
    assert json.loads(Store(store_uri).read_text("store.json") or "")["conditional_create"] is False
    assert [path for path in store.objects.find("") if "probe" in path] == []


def test_a_folder_without_hard_links_is_a_store_all_the_same(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(*arguments: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    store = Store(str(tmp_path / "store"))
    store.publish("learngene", "a", folder, {})
    with pytest.raises(UserError, match="already taken"):
        store.publish("learngene", "a", folder, {})

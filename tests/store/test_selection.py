"""Which descendant `pull` chooses: the most accurate one within the limits, among those that can be compared."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from ray_learngene.cli.choose import select_descendant
from ray_learngene.cli.pull import pull
from ray_learngene.config import PullConfig
from ray_learngene.errors import NothingWithin, UserError
from ray_learngene.store import index
from ray_learngene.store.store import Store
from tests.store.folders import make_folder, one_line, publish, row


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "folder", {"config.json": b"{}"})


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three notes are many."""
    monkeypatch.setattr(index, "MANY_NOTES", 3)


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
    store: Store, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    store.publish("descendant", "mine/a", folder, {"row": {"top1": 81.5}})
    caplog.clear()
    path = pull(PullConfig(store=store.uri, artefact="descendants/mine/a", out=str(tmp_path / "pulled")))
    assert {file.name for file in path.iterdir()} >= {file.name for file in folder.iterdir()}
    assert capsys.readouterr().out.count("\n") == 1
    assert len(caplog.messages) == 1, "it logs, and prints nothing itself"
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

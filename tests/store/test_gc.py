"""`learngene gc` finds what is no longer needed, and removes it only with --delete; what is in use stays."""

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from ray_learngene.cli.gc import print_garbage
from ray_learngene.cli.main import main
from ray_learngene.config import GcConfig
from ray_learngene.store.gc import find_garbage
from ray_learngene.store.store import Store
from tests.conftest import S3Server
from tests.store.folders import contents, make_folder

SOON = timedelta(hours=1)


def garbage(store: Store, age: timedelta = -SOON) -> dict[str, str]:
    """Return what is found, by path; by default as if an hour had passed."""
    return {one.path: one.what for one in find_garbage(store, datetime.now(UTC) - age)}


@pytest.fixture
def full(store: Store, folder: Path) -> Store:
    """A store with some of everything that is left over, and of what is not."""
    for n in (1, 2):
        (folder / "config.json").write_bytes(b"[%d]" % n)
        store.publish("learngene", "x", folder, {}, overwrite=True)
    store.publish("descendant", "s/a", folder, {"row": {"top1": 1.0}})
    for run in ("learngene-x/state", "learngene-y/state", "s/a", "s/b"):
        store.publish("checkpoint", run, folder, {})
    for path in ("runs/learngene-x/state.json", "runs/learngene-y/state.json", "runs/sweep-s/t.json", "runs/sweep-t/t"):
        store.write_text(path, "{}")
    store.write_text("sweeps/s/results.parquet", "")
    store.write_text("benches/t/results.parquet", "")  # of another command: sweep t goes on
    store.write_text(".check-1", "")
    store.objects.put("learngenes/dead/0123456789ab-01234567/model.safetensors", b"half")
    return store


def expected(store: Store, full: bool = True) -> dict[str, str]:
    live = store.manifest("learngene", "x").base
    replaced = {path.rsplit("/", 1)[0] for path in store.objects.find("learngenes/x") if path.endswith("config.json")}
    (old,) = replaced - {live}
    return {
        ".check-1": "temporary file",
        old: "replaced files",
        "learngenes/dead/0123456789ab-01234567": "files without a manifest",
        "runs/learngene-x": "state of an ended run",
        "runs/sweep-s": "state of an ended run",
        "checkpoints/learngene-x/state": "checkpoint of a finished run",
        "checkpoints/s/a": "checkpoint of a finished run",
    }


def test_what_is_left_over_is_found_and_nothing_young(full: Store) -> None:
    assert garbage(full) == expected(full)
    assert garbage(full, timedelta(hours=1)) == {}


def test_only_delete_deletes(full: Store, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = full.objects.find("")
    wanted = expected(full)
    assert {one.path for one in print_garbage(GcConfig(store=full.uri, min_age="24h"))} == set()
    assert "nothing to remove in" in capsys.readouterr().out
    assert print_garbage(GcConfig(store=full.uri, min_age="0m", delete=True)) == []
    assert "--min-age 0m counts as 1h: a publisher may be at work" in capsys.readouterr().out
    config = GcConfig(store=full.uri, min_age="0m", force=True)
    found = {one.path for one in print_garbage(config)}
    assert found <= set(wanted)  # S3 tells whole seconds, and the newest is of this one
    assert full.objects.find("") == before
    for one in find_garbage(full, datetime.now(UTC) + SOON):
        assert one.still()
        one.delete()
    assert garbage(full) == {}
    assert contents(full.download("learngene", "x", tmp_path / "x")) == contents(folder)
    assert full.exists("checkpoint", "learngene-y/state") and full.has("runs/learngene-y/state.json")
    assert not full.exists("checkpoint", "s/a") and not full.has("runs/learngene-x/state.json")


def test_an_artefact_published_again_meanwhile_is_left_alone(full: Store, folder: Path) -> None:
    found = {one.path: one for one in find_garbage(full, datetime.now(UTC) + SOON)}
    dead = found["learngenes/dead/0123456789ab-01234567"]
    text = (full.objects.read("learngenes/x/manifest.json") or b"").decode()
    base = full.manifest("learngene", "x").base.rsplit("/", 1)[1]
    full.write_text(
        "learngenes/dead/manifest.json", text.replace('"x"', '"dead"').replace(base, "0123456789ab-01234567")
    )
    assert not dead.still()


def test_a_manifest_that_cannot_be_read_protects_its_files(full: Store) -> None:
    full.write_text("learngenes/x/manifest.json", "{")
    assert not [path for path in garbage(full) if path.startswith("learngenes/x/")]


def test_publishers_at_work_lose_nothing_to_a_gc_in_a_hurry(store: Store, folder: Path, tmp_path: Path) -> None:
    """What one wrote before its manifest looks like what a dead one left."""
    names = [f"s/{n}" for n in range(12)]
    store.write_text("a.txt", "")  # there is a store
    with ThreadPoolExecutor(3) as pool:
        publishing = [pool.submit(store.publish, "descendant", name, folder, {}) for name in names]
        while not all(each.done() for each in publishing):
            print_garbage(GcConfig(store=store.uri, min_age="0m", delete=True))
    for name in names:
        assert contents(store.download("descendant", name, tmp_path / name)) == contents(folder)


def test_abandoned_multipart_uploads_go(s3_env: Callable[[], str], s3_server: S3Server) -> None:
    uri = s3_env()
    bucket = uri.removeprefix("s3://")
    client = s3_server.client()
    for key in ("store/learngenes/a/f/model.safetensors", "another/object"):
        client.create_multipart_upload(Bucket=bucket, Key=key)
    store = Store(f"{uri}/store")
    assert garbage(store) == {"learngenes/a/f/model.safetensors": "incomplete upload"}
    for one in find_garbage(store, datetime.now(UTC) + SOON):
        one.delete()
    assert garbage(store) == {}
    assert [one["Key"] for one in client.list_multipart_uploads(Bucket=bucket)["Uploads"]] == ["another/object"]


def test_local_leftovers(tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Temporary files of a dead publisher, and what a dead pull left; through the command."""
    store = Store(str(tmp_path / "store"))
    store.publish("learngene", "a", folder, {})
    old = time.time() - 2 * 86400
    paths = [
        make_folder(tmp_path / "store" / "learngenes" / "b", {".0123.tmp": b"x" * 2000}) / ".0123.tmp",
        *make_folder(tmp_path / "pulled" / "m.partial", {".pull-lock": b"", "model.safetensors": b"half"}).iterdir(),
        *make_folder(tmp_path / "pulled" / "mine.partial", {"thesis.tex": b"years"}).iterdir(),
        *make_folder(tmp_path / "pulled" / "mine.replaced", {"thesis.tex": b"years"}).iterdir(),
        *make_folder(tmp_path / "pulled" / "only.replaced", {".pull-lock": b"", "a": b"the only copy"}).iterdir(),
        *make_folder(tmp_path / "pulled" / "both.replaced", {".pull-lock": b""}).iterdir(),
    ]
    for name in ("mine", "both"):
        make_folder(tmp_path / "pulled" / name, {"a": b"the new copy"})
    for path in paths:
        os.utime(path, (old, old))
    arguments = ["gc", "--store", store.uri, "--downloads", str(tmp_path / "pulled")]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "temporary file" in printed and "half a download" in printed and "3 to remove, 2 kB: add --delete" in printed
    assert all(path.exists() for path in paths)
    assert main([*arguments, "--delete"]) == 0
    assert "3 removed, 2 kB" in capsys.readouterr().out
    assert [path.exists() for path in paths] == [False, False, False, True, True, True, True, False]
    for age in ("soon", "999999d"):
        assert main(["gc", "--store", store.uri, "--min-age", age]) == 2
        assert "write a number of minutes, hours or days" in capsys.readouterr().err
    assert main(["gc", "--store", store.uri, "--downloads", str(tmp_path / "puled")]) == 2
    assert "puled is no folder" in capsys.readouterr().err
    assert contents(store.download("learngene", "a", tmp_path / "out")) == contents(folder)

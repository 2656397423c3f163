"""A bucket, folder or file that cannot be used is one line, before any work."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors import SafetensorError

from ray_learngene.cli.main import main
from ray_learngene.store.store import Store
from tests.command_line import learngene, process
from tests.conftest import free_ports


def test_buckets_that_cannot_be_used(
    s3_env: Callable[[], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bucket = s3_env()
    secret = os.environ["AWS_SECRET_ACCESS_KEY"]
    cases = {
        "does not exist": ("s3://no-such-bucket-anywhere/x", {}),
        "AWS_SECRET_ACCESS_KEY": (bucket, {"AWS_SECRET_ACCESS_KEY": "wrong-and-never-printed"}),
        "AWS_ENDPOINT_URL": (bucket, {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{free_ports(1)[0]}"}),
    }
    for says, (uri, environment) in cases.items():
        for command in (
            ("sweep", "--data", "digits", "--name", "x", "--learngene", "x", "--store", uri),
            ("pull", "--store", uri, "--out", str(tmp_path / "out")),
        ):
            with monkeypatch.context() as changed:
                for name, value in environment.items():
                    changed.setenv(name, value)
                status = main(list(command))
            told = capsys.readouterr().err
            assert status == (4 if says == "AWS_ENDPOINT_URL" else 2), told
            assert len(told.strip().splitlines()) == 1, told
            assert says in told, told
            assert secret not in told and "wrong-and-never-printed" not in told
    ran = process("pull", "--store", uri, "--out", str(tmp_path / "out"), environment=environment)
    assert (ran.returncode, ran.stderr) == (status, told), "a process says the same"
    assert list(tmp_path.iterdir()) == []


WRITERS = (
    "page --store {store} --out {out}",
    "measure {model} --store {store} --out {out}",
    "measure --script {out}",
    "expand gene --store {store} --out {out}",
    "export {model} --out {out}",
    "data convert --data digits --out {out}",
    "bench --data digits --name x --preset nano --ancestry resnet18 --depths 2 --reference a --store {store} "
    "--arms '{{a: {{method: sws}}}}' --out {out}",
)


@pytest.mark.parametrize("command", WRITERS, ids=[command.partition(" -")[0] for command in WRITERS])
@pytest.mark.parametrize(
    ("out", "says"),
    [
        ("/proc/x", "no permission for"),
        ("{tmp}/file/x", "cannot be a folder: a file stands in its way"),
        ("{tmp}/" + 300 * "x", "cannot be read or written"),
    ],
)
def test_a_place_that_cannot_be_written_is_named_before_any_work(
    command: str,
    out: str,
    says: str,
    store: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def work(*arguments: object, **more: object) -> None:
        raise AssertionError("this costs time")

    for name in ("entries", "manifest", "read_file"):
        monkeypatch.setattr(Store, name, work)
    for module in ("data.convert.open_image_sets", "delivery.export.load_timm", "compare.compare.load_ancestry"):
        monkeypatch.setattr(f"ray_learngene.{module}", work)
    (tmp_path / "file").write_text("")
    model = store.parent / "made" / "ten"
    assert learngene(command.format(store=store, model=model, out=out.format(tmp=tmp_path))) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and says in said and [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("command", ["evaluate {} --data digits", "export {}", "measure {}", "measure --import {}"])
@pytest.mark.parametrize("name", [300 * "x", "~nobody-here/x"])
def test_a_name_that_nothing_has_is_one_line(command: str, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert learngene(command.format(name)) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, ""), SafetensorError("No space left on device")])
def test_a_full_disk_is_one_line(
    error: Exception,
    store: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*arguments: object, **more: object) -> None:
        raise error

    monkeypatch.setattr("ray_learngene.delivery.expand.export_timm", full)
    assert learngene(f"expand gene --store {store} --out {tmp_path / 'out'}") == 2
    said = capsys.readouterr().err
    assert str(tmp_path / "out") in said and said.count("\n") == 1 and list(tmp_path.iterdir()) == []

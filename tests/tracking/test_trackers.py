"""What is handed to trackers, and what becomes of one that fails."""

from __future__ import annotations

import builtins
import logging
import pickle
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from ray_learngene.cli.main import main
from ray_learngene.config import DistillConfig, SweepConfig
from ray_learngene.config.decides import DESCENDANT, RUN, decisive
from ray_learngene.errors import UserError
from ray_learngene.provenance import publishable
from ray_learngene.store.store import Store
from ray_learngene.tracking import trackers as module
from ray_learngene.tracking.base import Parameters, Reference, curve_points, result_numbers
from ray_learngene.tracking.trackers import ToDriver, Trackers, hear, reference_of

MODEL = Reference("s3://bucket/descendants/photos/x/1", "abc", "00ff")


class Notes:
    """A tracker that notes what it is told, or fails from some call on."""

    def __init__(self, fails_at: int = -1) -> None:
        self.told: list[tuple[Any, ...]] = []
        self.fails_at = fails_at

    def _note(self, *what: Any) -> None:
        if len(self.told) == self.fails_at:
            raise ConnectionError("no route to\nhttps://me:secret@host")
        self.told.append(what)

    def start(self, run: str, parameters: Parameters) -> None:
        self._note("start", run)

    def log(self, run: str, step: int, numbers: Mapping[str, float]) -> None:
        self._note("log", run, step)

    def finish(self, run: str, row: Mapping[str, Any], model: Reference) -> None:
        self._note("finish", run, model.version)

    def fail(self, run: str, error: str) -> None:
        self._note("fail", run, error)

    def close(self) -> None:
        self._note("close")


def test_a_reference_names_the_weights_and_no_larger_file_next_to_them(tmp_path: Path) -> None:
    folder, store = tmp_path / "made", Store(str(tmp_path / "store"))
    for file, size in (("model.safetensors", 10), ("ema/model.safetensors", 10), ("onnx/model.onnx", 99)):
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(file.encode() + bytes(size))
    manifest = store.publish("descendant", "sizes/a", folder, {})
    weights = manifest.entry("model.safetensors")
    assert weights and reference_of(store, manifest).sha256 == weights.sha256


def follow(trackers: Trackers) -> None:
    with trackers:
        for run in ("a", "b", "a"):
            trackers.start(run, {})
        for step in (1, 2):
            for run in ("a", "b"):
                trackers.log(run, step, {"loss": 1.0 / step})
        trackers.log("a", 3, {})
        trackers.finish("a", {"top1": 90.0}, lambda: MODEL)
        trackers.fail("b", "diverged")
        trackers.log("b", 3, {"loss": 0.1})  # late


def test_every_tracker_hears_everything_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = Notes(), Notes()
    monkeypatch.setattr(module, "KINDS", {"one": lambda target: one, "other": lambda target: other})
    follow(Trackers(["one:x", "other:y", "one:x"]))
    assert one.told == other.told == [
        ("start", "a"), ("start", "b"), ("log", "a", 1), ("log", "b", 1), ("log", "a", 2), ("log", "b", 2),
        ("finish", "a", "abc"), ("fail", "b", "diverged"), ("close",),
    ]  # fmt: skip


def test_trackers_of_a_driver_hear_what_its_workers_do(monkeypatch: pytest.MonkeyPatch) -> None:
    here, there = Notes(), Notes()
    monkeypatch.setattr(module, "KINDS", {"here": lambda target: here, "there": lambda target: there})
    sent: list[tuple[Any, ...]] = []
    follow(
        Trackers(["here:x"], {"of the driver": ToDriver(lambda told: sent.append(pickle.loads(pickle.dumps(told))))})
    )
    with Trackers(["there:x"]) as trackers:
        for told in sent:
            hear(trackers, told)
    assert there.told == here.told and len(sent) == len(here.told) - 1  # each closes its own


@pytest.mark.parametrize("at", range(9))
def test_a_tracker_that_fails_is_told_once_and_the_others_go_on(
    at: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    bad, good = Notes(at), Notes()
    monkeypatch.setattr(module, "KINDS", {"bad": lambda target: bad, "good": lambda target: good})
    with caplog.at_level(logging.WARNING):
        follow(Trackers(["bad:https://me:secret@host", "good:y"]))
    (record,) = caplog.records
    text = record.getMessage()
    assert text.startswith("the tracker bad:https://host failed and follows no more: no route to") and "\n" not in text
    assert "secret" not in text and len(good.told) == 9 and len(bad.told) == at


def test_a_tracker_that_hangs_keeps_nothing_waiting(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    release = threading.Event()
    slow = Notes()
    slow.start = lambda run, parameters: release.wait()  # type: ignore[method-assign,assignment,return-value]
    monkeypatch.setattr(module, "KINDS", {"slow": lambda target: slow})
    monkeypatch.setattr(module, "CLOSING_SECONDS", 0.01)
    follow(Trackers(["slow:x"]))
    release.set()
    assert ["what it has left is lost" in record.getMessage() for record in caplog.records] == [True]


@pytest.mark.parametrize(
    ("track", "said"),
    [
        ("comet:x", "write tensorboard:DIR, mlflow:URI or wandb:PROJECT"),
        ("mlflow", "write tensorboard:DIR"),
        ("tensorboard:s3://bucket/x", "local folder"),
        ("mlflow:file:///runs", "mlflow:sqlite:///mlflow.db"),
        ("mlflow:runs", "mlflow:sqlite:///mlflow.db"),
    ],
)
def test_what_is_no_tracker_is_one_line(track: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", "--learngene", "x", "--name", "y", "--data", "digits", "--track", track]) == 2
    assert said in (text := capsys.readouterr().err) and text.count("\n") == 1


def test_a_place_where_no_runs_can_be_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="name a folder"):
        Trackers([f"tensorboard:{tmp_path}/file"])


@pytest.mark.parametrize("kind", ["tensorboard", "mlflow", "wandb"])
def test_a_missing_package_is_one_line(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    imported = builtins.__import__

    def without(name: str, *others: Any, **more: Any) -> Any:
        if name.startswith(("tensorboardX", "mlflow", "wandb")):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return imported(name, *others, **more)

    monkeypatch.setattr("importlib.import_module", without)
    with pytest.raises(UserError, match=rf"pip install 'ray_learngene\[{kind}\]'"):
        Trackers([f"{kind}:sqlite:///{tmp_path}/x.db" if kind == "mlflow" else f"{kind}:{tmp_path}/x"])


def test_trackers_decide_nothing_and_are_not_published(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEARNGENE_TRACK", "tensorboard:tb")
    for config in (
        SweepConfig(learngene="x", name="y", data="digits", track=("mlflow:http://me:secret@host",)),
        DistillConfig(ancestry="a", preset="nano", name="y", data="digits", track=("wandb:team/x",)),
    ):
        for what in (RUN, DESCENDANT):
            assert "track" not in decisive(config, what)
        assert "track" not in publishable(config.model_dump(mode="json"))


def test_local_targets_are_absolute_because_workers_run_elsewhere() -> None:
    tracked = SweepConfig(
        learngene="x", name="y", data="digits", track=("tensorboard:tb", "mlflow:sqlite:///a/b.db", "wandb:x")
    ).track
    here = Path.cwd()
    assert tracked == (f"tensorboard:{here}/tb", f"mlflow:sqlite:///{here}/a/b.db", "wandb:x")


def test_curves_and_results_are_finite_numbers() -> None:
    metrics = {"step": 3, "loss": 0.5, "distill_loss": float("nan"), "top1": 90.0, "pid": 7, "epochs": 5, "lr": 1e-3}
    assert curve_points(metrics) == {"loss": 0.5, "top1": 90.0, "lr": 1e-3}
    assert result_numbers({"a": 1, "b": None, "c": "x", "d": float("inf"), "e": True}) == {"a": 1.0}

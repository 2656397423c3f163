"""TensorBoard, MLflow and W&B read back what a sweep and a distillation told them: `make test-trackers`."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ray_learngene.config import DistillConfig, SweepConfig
from ray_learngene.store.store import Store
from ray_learngene.tracking.base import Reference
from ray_learngene.tracking.trackers import Trackers
from tests.fixtures.write_store import OLD_STORE

pytestmark = pytest.mark.trackers

SETTINGS: dict[str, Any] = {
    **{"data": "digits", "train_share": 0.1, "val_share": 0.1, "batch_size": 32, "lr": 3e-2, "warmup_epochs": 0},
}
MODEL = Reference("s3://bucket/descendants/photos/x/1", "abc", "00ff")
RUN = "descendants/photos/x"

Curves = dict[str, dict[str, list[tuple[int, float]]]]  # by run and name: steps and values
Facts = dict[str, dict[str, Any]]  # by run: its settings, its model, its status


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("XDG_CONFIG_HOME", "XDG_CACHE_HOME", "WANDB_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "wandb"))
    (tmp_path / "wandb").mkdir()
    monkeypatch.setenv("WANDB_MODE", "offline")
    return tmp_path


def tensorboard(place: Path) -> tuple[str, Callable[[], tuple[Curves, Facts]]]:
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")

    def read() -> tuple[Curves, Facts]:
        curves: Curves = {}
        facts: Facts = {}
        for folder in {path.parent for path in (place / "tb").rglob("events.*")}:
            events = event_accumulator.EventAccumulator(str(folder)).Reload()
            run, tags = folder.relative_to(place / "tb").as_posix(), events.Tags()
            curves[run] = {name: [(one.step, one.value) for one in events.Scalars(name)] for name in tags["scalars"]}
            texts = {
                name.removesuffix("/text_summary"): events.Tensors(name)[-1].tensor_proto.string_val[0].decode()
                for name in tags["tensors"]
            }
            failed = "failed" if "error" in texts else "finished" if "model" in texts else "open"
            facts[run] = {"settings": texts["settings"], "model": texts.get("model", ""), "status": failed}
        return curves, facts

    return f"tensorboard:{place}/tb", read


def mlflow(place: Path) -> tuple[str, Callable[[], tuple[Curves, Facts]]]:
    module = pytest.importorskip("mlflow")
    uri = f"sqlite:///{place}/mlflow.db"

    def read() -> tuple[Curves, Facts]:
        client = module.MlflowClient(tracking_uri=uri, registry_uri=uri)
        curves: Curves = {}
        facts: Facts = {}
        for run in client.search_runs([client.get_experiment_by_name("ray_learngene").experiment_id]):
            name, tags = run.data.tags["learngene.run"], run.data.tags
            curves[name] = {
                metric: sorted({(one.step, one.value) for one in client.get_metric_history(run.info.run_id, metric)})
                for metric in run.data.metrics
            }
            model = " ".join(tags.get(f"learngene.model.{key}", "") for key in ("uri", "version", "sha256"))
            if registered := tags.get("learngene.model.registered"):
                version = client.get_model_version(*registered.split("/"))
                assert (version.run_id, version.tags["version"]) == (run.info.run_id, tags["learngene.model.version"])
            status = {"FINISHED": "finished", "FAILED": "failed", "KILLED": "open"}[run.info.status]
            facts[name] = {"settings": str(run.data.params), "model": model, "status": status}
        return curves, facts

    return f"mlflow:{uri}", read


def wandb(place: Path) -> tuple[str, Callable[[], tuple[Curves, Facts]]]:
    module = pytest.importorskip("wandb")

    def read() -> tuple[Curves, Facts]:
        module.teardown()  # its service writes on after a run has ended, as long as the process lives
        from wandb.proto import wandb_internal_pb2

        curves: Curves = {}
        facts: Facts = {}
        found = {path.resolve() for path in (place / "wandb").rglob("run-*.wandb")}
        for path in sorted(found, key=lambda path: path.stat().st_mtime_ns):
            name, settings, model, status = "", "", "", "open"
            points: dict[str, set[tuple[int, Any]]] = {}
            for data in records_in(path):
                record = wandb_internal_pb2.Record()
                record.ParseFromString(data)
                if record.HasField("run"):
                    name = record.run.display_name
                    assert not record.run.host  # it would be the driver's
                    settings += " ".join(f"{item.key} {item.value_json}" for item in record.run.config.update)
                logged = {
                    item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in record.history.item
                }
                for key, value in logged.items():
                    points.setdefault(key, set()).add((logged.get("step"), value))
                for item in record.summary.update:
                    key = item.key or ".".join(item.nested_key)
                    model += item.value_json if key.startswith("model") else ""
                if record.HasField("exit"):
                    status = "failed" if record.exit.exit_code else "finished"
            known = curves.setdefault(name, {})
            for key, values in points.items():
                known[key] = sorted({*known.get(key, []), *values})
            facts[name] = {
                "settings": settings,
                "model": model,
                "status": status if model or status != "finished" else "open",
            }
        return curves, facts

    return "wandb:learngenes", read


def records_in(path: Path) -> Iterator[bytes]:
    """Yield the records of a W&B file: a header, then LevelDB's log format, blocks of 32 KiB."""
    data, position, record = path.read_bytes(), 7, b""
    while position + 7 <= len(data):
        if (left := -position % 32768) and left < 7:
            position += left
            continue
        length, kind = struct.unpack_from("<HB", data, position + 4)
        record += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield record
            record = b""


KINDS = {"tensorboard": tensorboard, "mlflow": mlflow, "wandb": wandb}


@pytest.mark.parametrize("kind", KINDS)
def test_siblings_of_a_sweep_have_a_run_each(kind: str, place: Path) -> None:
    from ray_learngene.sweeps.sweep import sweep

    shutil.copytree(OLD_STORE, place / "store")
    track, read = KINDS[kind](place)
    table = sweep(
        SweepConfig(
            store=str(place / "store"), learngene="sws", name="tracked", depths="1,2", arms=("sws",), epochs=3,
            in_process=True, siblings=2, track=(track,), **SETTINGS,
        )
    )  # fmt: skip
    curves, facts = read()
    assert sorted(curves) == sorted(f"descendants/tracked/{name}" for name in table["descendant"])
    for row in table.to_dict("records"):
        run = f"descendants/tracked/{row['descendant']}"
        manifest = Store(str(place / "store")).manifest("descendant", run.removeprefix("descendants/"))
        history = [(one["step"], pytest.approx(one["top1"])) for one in manifest.metadata["history"]]
        assert curves[run]["top1"] == history and [step for step, _ in curves[run]["loss"]] == [4, 8, 12]
        weights = next(file for file in manifest.files if file.path == "model.safetensors")
        for part in (manifest.version, weights.sha256, manifest.base):
            assert part in facts[run]["model"]
        assert facts[run]["status"] == "finished" and "0.03" in facts[run]["settings"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_is_continued_goes_on(kind: str, place: Path) -> None:
    track, read = KINDS[kind](place)
    with Trackers([track]) as trackers:
        trackers.start(RUN, {"lr": "0.1", "loader_workers": "0"})
        trackers.start(f"{RUN}y", {"lr": "0.1"})
        for step in (1, 2, 3):
            trackers.log(RUN, step, {"loss": 1 / step})
            trackers.log(f"{RUN}y", step, {"loss": 2 / step})
    assert read()[1][RUN]["status"] in ("open", "failed")
    with Trackers([track]) as trackers:  # from the checkpoint of step 2
        trackers.start(RUN, {"lr": "0.1", "loader_workers": "4"})
        for step in (3, 4):
            trackers.log(RUN, step, {"loss": 1 / step})
        trackers.finish(RUN, {"top1": 90.0, "arm": "sws"}, lambda: MODEL)
        trackers.start(f"{RUN}y", {"lr": "0.1"})
        trackers.fail(f"{RUN}y", "the loss is not finite")
    curves, facts = read()
    assert curves.keys() == {RUN, f"{RUN}y"}
    assert curves[RUN]["loss"] == [(step, pytest.approx(1 / step)) for step in (1, 2, 3, 4)]
    assert curves[f"{RUN}y"]["loss"] == [(step, pytest.approx(2 / step)) for step in (1, 2, 3)]
    assert (facts[RUN]["status"], facts[f"{RUN}y"]["status"]) == ("finished", "failed")


def test_a_distillation_has_a_run_in_all_three(place: Path) -> None:
    from ray_learngene.distillation.distill import distill

    shutil.copytree(OLD_STORE, place / "store")
    kinds = [make(place) for make in KINDS.values()]
    manifest = distill(
        DistillConfig(
            store=str(place / "store"), ancestry="store:ancestries/vit", preset="nano", depth=2, width=16,
            method="sws:stages=1-1", name="tracked", workers=0, epochs=2, track=[track for track, _ in kinds],
            **SETTINGS,
        )
    )  # fmt: skip
    for _, read in kinds:
        curves, facts = read()
        assert [step for step, _ in curves["learngenes/tracked"]["distill_loss"]] == [4, 8]
        assert manifest.version in facts["learngenes/tracked"]["model"]


def test_an_account_is_asked_for_before_anything_is_trained(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    import subprocess
    import sys

    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("HOME", str(place))
    program = "from ray_learngene.tracking.trackers import Trackers; Trackers(['wandb:x'])"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert "run `wandb login`, set WANDB_API_KEY, or WANDB_MODE=offline" in ran.stderr.splitlines()[-1]
    assert "deprecated" not in ran.stderr and ran.stdout == ""

"""Training on Ray nodes that come, are drained, and are told to stop: nothing is lost, and the result is the same."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
import safetensors.torch
import torch

from ray_learngene.config import AncestryConfig
from ray_learngene.distillation import tracked
from ray_learngene.distillation import train_ancestry as ancestry_training
from ray_learngene.distillation.train_ancestry import AncestryTask, train_ancestry
from ray_learngene.errors import UserError
from ray_learngene.progress import TrainingProgress
from ray_learngene.store.store import Store
from ray_learngene.sweeps import tune_callbacks
from ray_learngene.sweeps.sweep import sweep
from ray_learngene.training.engine import Engine
from ray_learngene.training.engine_state import STATE_FILE
from ray_learngene.training.objectives import Objective
from tests.conftest import free_ports
from tests.sweeps.test_descendant import inputs as descendant_inputs

pytestmark = pytest.mark.hosts

MODEL = {"img_size": 8, "patch_size": 2, "embed_dim": 48, "depth": 2, "num_heads": 3}
SETTINGS: dict[str, Any] = {
    "data": "digits",
    "model": "deit_tiny_patch16_224",
    "model_args": {**MODEL, "class_token": False, "global_pool": "avg"},
    "epochs": 40,  # long enough for a request to come through while it runs, on a fast machine too
    "batch_size": 128,
    "lr": 4e-3,
    "warmup_epochs": 0,
    "drop_path": 0.0,  # stochastic depth is drawn for each worker
    "scale": (0.9, 1.0),
    "ema": 0.9,
    "checkpoint_every": 1000,  # of itself none but the last is written
    "resize_seconds": 1,
    "max_failures": 0,
}


RAY = str(Path(sys.executable).with_name("ray"))


@dataclass
class Nodes:
    """A Ray head with one CPU, and nodes with one more each that come and go."""

    address: str
    joined: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self, *options: str) -> None:
        command = [RAY, "start", *options, "--node-ip-address=127.0.0.1", "--num-cpus=1", "--block"]
        command += ["--object-store-memory=100000000", f"--dashboard-agent-listen-port={free_ports(1)[0]}"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)
        self.joined.append(process)
        assert process.stdout is not None
        said = []
        for line in process.stdout:
            said.append(line.decode())
            if "Ray runtime started" in said[-1]:
                return
        pytest.fail("".join(said))

    def join(self) -> None:
        self.start(f"--address={self.address}")

    def alive(self) -> list[str]:
        import ray

        return [node["NodeID"] for node in ray.nodes() if node["Alive"]]

    def leave(self, keep: int = 0) -> None:
        """Stop all nodes but the first ones."""
        while len(self.joined) > keep:
            process = self.joined.pop()
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


@pytest.fixture(scope="module")
def cluster() -> Iterator[Nodes]:
    # of the head's processes, and so of all that Ray starts
    os.environ["RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S"] = "0.2"
    import ray

    port = free_ports(1)[0]
    nodes = Nodes(f"127.0.0.1:{port}")
    nodes.start("--head", f"--port={port}", "--include-dashboard=false", "--disable-usage-stats")
    ray.init(address=nodes.address, log_to_driver=False, logging_level="ERROR")
    yield nodes
    ray.shutdown()
    nodes.leave()
    del os.environ["RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S"]


@pytest.fixture
def second(cluster: Nodes) -> Iterator[str]:
    """The identity of a second node."""
    before = set(cluster.alive())
    cluster.join()
    while not set(cluster.alive()) - before:
        time.sleep(0.1)
    [new] = set(cluster.alive()) - before
    yield new
    cluster.leave(keep=1)
    while len(cluster.alive()) > 1:
        time.sleep(0.1)


class AtStep(TrainingProgress):
    """Lets something happen, once, when a run has got so far."""

    step: int
    act: Callable[[], Any]
    seen: list[dict[str, Any]]

    def __call__(self, metrics: Any) -> None:
        super().__call__(metrics)
        self.seen.append(dict(metrics))
        if metrics.get("step", 0) >= self.step:
            act, type(self).act = self.act, staticmethod(lambda: None)
            act()


@pytest.fixture
def at_step(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Callable[[], Any]], list[dict[str, Any]]]:
    def set_up(step: int, act: Callable[[], Any]) -> list[dict[str, Any]]:
        seen: list[dict[str, Any]] = []
        printer = type("Printer", (AtStep,), {"step": step, "act": staticmethod(act), "seen": seen})
        monkeypatch.setattr(tracked, "TrainingProgress", printer)
        return seen

    return set_up


def weights(store: Path, name: str) -> dict[str, torch.Tensor]:
    return safetensors.torch.load(Store(str(store)).read_bytes("ancestry", name, "model.safetensors"))


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store")


@pytest.fixture(scope="module")
def undisturbed(store: Path, cluster: Nodes) -> dict[str, torch.Tensor]:
    """What two workers train together."""
    cluster.join()
    train_ancestry(AncestryConfig(**SETTINGS, name="undisturbed", store=str(store), workers=2))
    cluster.leave(keep=1)
    return weights(store, "undisturbed")


def test_a_drained_node_is_left_with_a_checkpoint(
    cluster: Nodes,
    second: str,
    undisturbed: dict[str, torch.Tensor],
    store: Path,
    at_step: Any,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from ray._raylet import GcsClient

    def drain() -> None:
        deadline = int((time.time() + 300) * 1000)
        preemption = 2  # autoscaler.proto: DRAIN_NODE_REASON_PREEMPTION
        assert GcsClient(address=cluster.address).drain_node(second, preemption, "reclaimed", deadline)[0]
        cluster.join()

    seen = at_step(11, drain)
    train_ancestry(AncestryConfig(**SETTINGS, name="drained", store=str(store), workers=2))
    assert "workers are taken away: moving on from step" in capsys.readouterr().out
    assert [metrics["step"] for metrics in seen if "top1" in metrics] == [11 * epoch for epoch in range(1, 41)]
    assert same(weights(store, "drained"), undisturbed)


def test_sigterm_to_a_worker_moves_on_from_a_checkpoint(
    cluster: Nodes,
    second: str,
    undisturbed: dict[str, torch.Tensor],
    store: Path,
    at_step: Any,
    capsys: pytest.CaptureFixture[str],
) -> None:
    seen = at_step(11, lambda: processes("ray::RayTrainWorker")[0].terminate())
    train_ancestry(AncestryConfig(**SETTINGS, name="terminated", store=str(store), workers=2))
    assert "workers are taken away: moving on from step" in capsys.readouterr().out
    assert [metrics["step"] for metrics in seen if "top1" in metrics] == [11 * epoch for epoch in range(1, 41)]
    assert same(weights(store, "terminated"), undisturbed)


def processes(title: str) -> list[psutil.Process]:
    """Return those of this test's nodes that Ray has given a title."""

    def has_title(process: psutil.Process) -> bool:
        try:
            return "".join(process.cmdline()[:1]).startswith(title)
        except psutil.NoSuchProcess:
            return False

    return [process for process in psutil.Process().children(recursive=True) if has_title(process)]


def test_workers_join_a_run(cluster: Nodes, store: Path, at_step: Any) -> None:
    at_step(11, cluster.join)
    # sums are rounded in another order, which every further step makes more of
    settings = {**SETTINGS, "checkpoint_every": 11, "epochs": 20}
    train_ancestry(AncestryConfig(**settings, name="elastic", store=str(store), workers="1:2"))
    train_ancestry(AncestryConfig(**settings, name="alone", store=str(store), workers=0))
    cluster.leave(keep=1)
    elastic, alone = (without_key_biases(weights(store, name)) for name in ("elastic", "alone"))
    assert elastic.keys() == alone.keys()
    for name, tensor in alone.items():
        torch.testing.assert_close(elastic[name], tensor, rtol=0, atol=2e-4)


def without_key_biases(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A key's bias changes no softmax. Its gradient is rounding alone, of which Adam makes steps of any direction."""
    width = MODEL["embed_dim"]
    return {
        name: torch.cat([tensor[:width], tensor[2 * width :]]) if name.endswith("qkv.bias") else tensor
        for name, tensor in state.items()
    }


def ancestry_command(folder: Path, cluster: Nodes, store: Path, name: str) -> list[str]:
    recipe = folder / "recipe.yaml"
    recipe.write_text(json.dumps({**SETTINGS, "store": str(store), "workers": 2, "address": cluster.address}))
    return [sys.executable, "-m", "ray_learngene", "ancestry", "--config", str(recipe), "--name", name]


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_to_the_driver_leaves_a_checkpoint(
    number: signal.Signals,
    status: int,
    cluster: Nodes,
    second: str,
    undisturbed: dict[str, torch.Tensor],
    store: Path,
    tmp_path: Path,
) -> None:
    name = f"stopped-{status}"
    command = ancestry_command(tmp_path, cluster, store, name)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stderr is not None
    next(line for line in process.stdout if line.startswith("epoch"))
    process.send_signal(number)
    said = process.stderr.read()
    assert process.wait() == status and (told := re.search(r"after (\d+) of 440 steps; ", said)), said
    ran = subprocess.run(command, capture_output=True, text=True)
    assert ran.returncode == 0 and f"continuing from step {told[1]} of 440" in ran.stdout, ran.stderr
    assert same(weights(store, name), undisturbed)


class Tight(AncestryTask):
    """Training for which torch's own allocator refuses micro-batches of more than 16 images."""

    def objective(self, device: torch.device, autocast: torch.dtype | None) -> Objective:
        objective = super().objective(device, autocast)

        def with_little_memory(model: Engine, images: torch.Tensor, targets: torch.Tensor) -> dict[str, torch.Tensor]:
            torch.empty(2**50 if len(images) > 16 else 1)
            return objective(model, images, targets)

        return with_little_memory


def test_workers_that_run_out_of_memory_halve_their_micro_batches(
    cluster: Nodes,
    second: str,
    store: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    settings = {**SETTINGS, "epochs": 4}
    train_ancestry(AncestryConfig(**settings, name="roomy", store=str(store), workers=2))
    monkeypatch.setattr(ancestry_training, "AncestryTask", Tight)
    manifest = train_ancestry(AncestryConfig(**settings, name="tight", store=str(store), workers=2))
    assert "out of memory: continuing with micro-batches of 16 images (accumulation 4," in capsys.readouterr().out
    assert manifest.metadata["accumulation"] == 4
    for name, tensor in weights(store, "tight").items():
        torch.testing.assert_close(tensor, weights(store, "roomy")[name], rtol=0, atol=2e-4)


def test_a_non_finite_loss_never_reaches_a_checkpoint(cluster: Nodes, second: str, store: Path) -> None:
    settings = {**SETTINGS, "lr": 1e30, "min_lr": 1e29, "checkpoint_every": 1}
    with pytest.raises(UserError, match="not finite"):
        train_ancestry(AncestryConfig(**settings, name="explodes", store=str(store), workers=2))
    for path in (store / "runs" / "ancestry-explodes").glob(f"checkpoint_*/{STATE_FILE}"):
        assert all(tensor.isfinite().all() for tensor in safetensors.torch.load_file(path).values())


def test_sigterm_to_a_trial_leaves_a_checkpoint(
    cluster: Nodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = descendant_inputs(tmp_path / "store")[0].model_copy(
        update={"epochs": 12, "depths": "2", "arms": ("sws",), "checkpoint_seconds": 10**6, "max_failures": 1}
    )
    epochs: list[float] = []

    class Terminating(tune_callbacks.SweepProgress):
        def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: dict[str, Any], **info: Any) -> None:
            super().on_trial_result(iteration, trials, trial, result, **info)
            epochs.append(result["epoch"])
            if len(epochs) == 3:
                [trial_process] = processes("ray::ImplicitFunc")
                trial_process.terminate()

    monkeypatch.setattr(tune_callbacks, "SweepProgress", Terminating)
    sweep(config.model_copy(update={"in_process": False}))
    assert epochs[:13] == list(range(13)), "no epoch was trained twice"
    stored = Store(config.store)
    [terminated] = stored.manifests("descendant", under=config.name)
    sweep(config.model_copy(update={"name": "calm", "in_process": True}))
    [calm] = stored.manifests("descendant", under="calm")
    one, other = (
        safetensors.torch.load(stored.read_bytes("descendant", each.name, "model.safetensors"))
        for each in (terminated, calm)
    )
    assert same(one, other)

"""Training on Ray nodes that come, are drained, and are told to stop: nothing is lost, and the result is the same."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from ray_learngene import cluster_training
from ray_learngene.ancestry_training import train_ancestry
from ray_learngene.config import AncestryConfig
from ray_learngene.store import Store
from ray_learngene.terminal import ProgressPrinter

MODEL = {"img_size": 8, "patch_size": 2, "embed_dim": 48, "depth": 2, "num_heads": 3}
SETTINGS: dict[str, Any] = {
    "data": "digits",
    "model": "deit_tiny_patch16_224",
    "model_args": {**MODEL, "class_token": False, "global_pool": "avg"},
    "epochs": 6,
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


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A Ray head with one CPU, to which tests add nodes."""
    os.environ["RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S"] = "0.2"
    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 10**8})
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    yield cluster
    ray.shutdown()
    cluster.shutdown()
    del os.environ["RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S"]


@pytest.fixture
def second(cluster: Any) -> Iterator[Any]:
    node = cluster.add_node(num_cpus=1, object_store_memory=10**8)
    yield node
    if node in cluster.list_all_nodes():
        cluster.remove_node(node)


class AtStep(ProgressPrinter):
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
        monkeypatch.setattr(cluster_training, "ProgressPrinter", printer)
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
def undisturbed(store: Path, cluster: Any) -> dict[str, torch.Tensor]:
    """What two workers train together."""
    node = cluster.add_node(num_cpus=1, object_store_memory=10**8)
    train_ancestry(AncestryConfig(**SETTINGS, name="undisturbed", store=str(store), workers=2))
    cluster.remove_node(node)
    return weights(store, "undisturbed")


def test_a_drained_node_is_left_with_a_checkpoint(
    cluster: Any,
    second: Any,
    undisturbed: dict[str, torch.Tensor],
    store: Path,
    at_step: Any,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import ray
    from ray._raylet import GcsClient

    third = []

    def drain() -> None:
        third.append(cluster.add_node(num_cpus=1, object_store_memory=10**8))
        deadline = int((time.time() + 300) * 1000)
        preemption = 2  # autoscaler.proto: DRAIN_NODE_REASON_PREEMPTION
        assert GcsClient(address=cluster.address).drain_node(second.node_id, preemption, "reclaimed", deadline)[0]

    seen = at_step(22, drain)
    train_ancestry(AncestryConfig(**SETTINGS, name="drained", store=str(store), workers=2))
    assert ray.is_initialized() and "workers are taken away: moving on from step" in capsys.readouterr().out
    assert [metrics["step"] for metrics in seen if "top1" in metrics] == [11 * epoch for epoch in range(1, 7)]
    assert same(weights(store, "drained"), undisturbed)
    cluster.remove_node(third[0])


def test_workers_join_a_run(cluster: Any, undisturbed: dict[str, torch.Tensor], store: Path, at_step: Any) -> None:
    nodes = []
    at_step(22, lambda: nodes.append(cluster.add_node(num_cpus=1, object_store_memory=10**8)))
    config = AncestryConfig(
        **{**SETTINGS, "checkpoint_every": 11, "epochs": 20}, name="elastic", store=str(store), workers="1:2"
    )
    train_ancestry(config)
    print(Store(str(store)).manifest("ancestry", "elastic").metadata["history"][-1])
    cluster.remove_node(nodes[0])

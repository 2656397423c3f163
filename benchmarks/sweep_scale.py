"""python -m benchmarks.sweep_scale [--quick] [--out FILE.json]

Measures whether a sweep's cost per descendant and the driver's memory stay constant as descendants become many. Real
sweeps run on Ray Tune over four simulated nodes with one CPU each (`ray.cluster_utils.Cluster`). They expand, measure,
export and publish 16, 64, 256 and 1,000 descendants of three layers, without training. The learngene of the digits is
made first, in a temporary store.

- `ms each`: wall time between the first and the last publication over the number of descendants, without the sweep's
  fixed cost.
- `own ms`: time of a descendant in its process (`overhead_seconds` of the results table); there is one process per
  node.
- `driver MiB`: the driver's resident memory before the sweep and at its peak, sampled twice a second.
- `results s`: time to make table and page again from the store.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import psutil

import ray_learngene.cluster.shared_tensors  # noqa: F401  isort:skip  (before the first Ray import)
import ray
from ray.cluster_utils import Cluster

from benchmarks.digits import DIGITS, make_learngene
from benchmarks.measure import arguments, machine, publish
from ray_learngene.config import SweepConfig
from ray_learngene.store.store import Store
from ray_learngene.sweeps.results import write_results
from ray_learngene.sweeps.sweep import sweep

NODES = 4
DEPTH = 3
SAMPLE_SECONDS = 0.5


def main() -> None:
    args = arguments(__doc__)
    facts = machine()
    counts = (2, 4) if args.quick else (16, 64, 256, 1000)
    with tempfile.TemporaryDirectory() as store, contextlib.redirect_stdout(io.StringIO()):
        make_learngene(store)
        with _simulated_nodes():
            _sweep(store, "first", NODES)  # a warm-up that starts the processes
            rows = [_row(store, count) for count in counts]
    publish("sweep_scale", args, facts, rows)


@contextmanager
def _simulated_nodes() -> Iterator[None]:
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    for _ in range(NODES):
        cluster.add_node(num_cpus=1, object_store_memory=80 * 2**20)
    cluster.connect()
    try:
        yield
    finally:
        ray.shutdown()
        cluster.shutdown()


def _sweep(store: str, name: str, descendants: int) -> Any:
    config = SweepConfig(
        store=store, name=name, learngene="digits", depths=str(DEPTH), arms=("sws",), seeds=descendants, epochs=0,
        **DIGITS,
    )  # fmt: skip
    return sweep(config)


def _row(store: str, descendants: int) -> dict[str, Any]:
    name = f"of-{descendants}"
    with _memory() as memory:
        table = _sweep(store, name, descendants)
    opened = Store(store)
    made = sorted(datetime.fromisoformat(one.created) for one in opened.manifests("descendant", under=name))
    began = time.perf_counter()
    write_results(opened, name)
    return {
        "descendants": descendants,
        "ms each": 1000 * (made[-1] - made[0]).total_seconds() / (descendants - 1),
        "own ms": 1000 * float(table["overhead_seconds"].median()),
        "driver MiB before": memory[0],
        "driver MiB at most": max(memory),
        "results s": time.perf_counter() - began,
    }


@contextmanager
def _memory() -> Iterator[list[float]]:
    """Sample the resident MiB of this process, at the start and every half second."""
    process, stop = psutil.Process(), threading.Event()
    samples = [process.memory_info().rss / 2**20]

    def sample() -> None:
        while not stop.wait(SAMPLE_SECONDS):
            samples.append(process.memory_info().rss / 2**20)

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield samples
    finally:
        stop.set()
        thread.join()


if __name__ == "__main__":
    main()

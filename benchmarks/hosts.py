"""python -m benchmarks.hosts [--workers 1 2 4] [--epochs 6] [--quick] [--out FILE.json]

Measures how a distillation scales with its workers, each on its own host. It uses a local cluster (as root), the
digits, one submitted job per number of workers, and the same global batch. Reported: images per second within epochs,
as the run measures them; the seconds from submission to the published learngene; and the largest difference of any
weight from the first run's (all-reduce rounds in another order).

On a machine with fewer cores than hosts this measures the overhead of more workers, not a speed-up, because hosts share
the cores.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.measure import arguments, machine, publish
from cluster.local import LocalCluster
from ray_learngene.methods.base import Learngene
from ray_learngene.store.store import Store

ROOT = Path(__file__).parents[1]


def submit(cluster: LocalCluster, *words: object) -> float:
    """Run a command as a job and return its seconds."""
    began = time.monotonic()
    subprocess.run(
        [sys.executable, "-m", "ray_learngene", "submit", *map(str, words), "--store", cluster.store],
        env={**os.environ, **cluster.environment()},
        cwd=ROOT,
        check=True,
        stdout=sys.stderr,
    )
    return time.monotonic() - began


def learngene(store: Store, name: str) -> Learngene:
    """Read a learngene from the store."""
    files = (f"learngene.{kind}" for kind in ("safetensors", "json"))
    return Learngene.from_bytes(*(store.read_bytes("learngene", name, file) for file in files))


def row(cluster: LocalCluster, workers: int, epochs: int, first: int) -> dict[str, Any]:
    """Distil on that many hosts and compare the learngene with the first run's."""
    name = f"hosts-{workers}"
    recipe = ["--config", ROOT / "jobs/recipes/digits-distill.yaml", "--name", name, "--epochs", epochs]
    seconds = submit(cluster, "distill", *recipe, "--workers", workers)
    store = Store(cluster.store)
    facts = store.manifest("learngene", name).metadata
    one, other = (learngene(store, each).tensors for each in (name, f"hosts-{first}"))
    return {
        "workers": workers,
        "images/s": facts["history"][-1]["images_per_second"],
        "training (s)": facts["cost"]["seconds"],
        "whole job (s)": seconds,
        "images": facts["cost"]["images"],
        "top1": facts["metrics"]["top1"],
        "largest difference": max(float((tensor - other[key]).abs().max()) for key, tensor in one.items()),
    }


def main() -> None:
    args = arguments(__doc__, _add)
    facts, epochs = machine(), 1 if args.quick else args.epochs
    with tempfile.TemporaryDirectory(prefix="lg-", dir="/tmp") as folder:
        cluster = LocalCluster(Path(folder) / "hosts")
        try:
            cluster.up(max(args.workers))
            os.environ.update({key: text for key, text in cluster.environment().items() if key.startswith("AWS_")})
            submit(cluster, "ancestry", "--config", ROOT / "jobs/recipes/digits-ancestry.yaml", "--epochs", 5)
            rows = [row(cluster, workers, epochs, args.workers[0]) for workers in args.workers]
        finally:
            cluster.down()
    publish("hosts", args, facts, rows)


def _add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--epochs", type=int, default=6)


if __name__ == "__main__":
    main()

"""python -m benchmarks.sweep_overhead [--quick] [--out FILE.json]

Measures the seconds that one more descendant costs in a sweep beyond its training. Real sweeps (Ray Tune, one trial at
a time) train few and many descendants of one size with the same training. The learngene of the digits is made first, in
a temporary store. (wall of many - wall of few) / (many - few) excludes the fixed cost of a sweep: its image set, its
latency measurement, its first worker. The mean training seconds of the descendants, from the results table, are
subtracted.

The comparison is fair: small and large sweeps alternate on one running Ray, and nothing else differs. `export`
(building the model, its last checkpoint, writing the model: the table's `overhead_seconds`) is part of the overhead.
`publish` is timed separately, without Ray, on the same files. The remainder is Ray's.
Goal: at most 1 s for a descendant.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
import time
from pathlib import Path
from statistics import mean, median

import pandas

from benchmarks.digits import DIGITS, make_learngene
from benchmarks.measure import arguments, machine, publish
from ray_learngene.cluster.session import ray_cluster
from ray_learngene.config import SweepConfig
from ray_learngene.store.store import Store
from ray_learngene.sweeps.sweep import sweep

GOAL_SECONDS = 1.0
DEPTH = 4
PUBLISHED = 10


def main() -> None:
    args = arguments(__doc__)
    facts = machine()
    few, many, rounds = (1, 2, 1) if args.quick else (4, 12, 3)
    with tempfile.TemporaryDirectory() as store, contextlib.redirect_stdout(io.StringIO()):
        make_learngene(store)
        with ray_cluster(None):
            _sweep(store, "first", 1)
            runs = [
                {count: _sweep(store, f"{count}-round-{number}", count) for count in (few, many)}
                for number in range(rounds)
            ]
        publishing = _publish_seconds(Store(store), f"{many}-round-0")
    rows = [_row(run[few], run[many], publishing) for run in runs]
    middle = {name: median(row[name] for row in rows) for name in rows[0]}
    summary = {"descendants": f"{few} and {many}", "rounds": rounds, **middle, "goal": f"<= {GOAL_SECONDS:g} s"}
    publish("sweep_overhead", args, facts, [{**summary, "raw_rounds": rows, "raw_publish_seconds": publishing}])


def _sweep(store: str, name: str, descendants: int) -> tuple[float, pandas.DataFrame]:
    """Run a sweep of one size with that many seeds; return its wall seconds and results."""
    config = SweepConfig(
        store=store, name=name, learngene="digits", depths=str(DEPTH), arms=("sws",), seeds=descendants, epochs=1,
        max_concurrent=1, **DIGITS,
    )  # fmt: skip
    began = time.perf_counter()
    table = sweep(config)
    return time.perf_counter() - began, table


def _row(
    few: tuple[float, pandas.DataFrame], many: tuple[float, pandas.DataFrame], publishing: list[float]
) -> dict[str, float]:
    wall = (many[0] - few[0]) / (len(many[1]) - len(few[1]))
    trained = many[1][many[1]["seed"] > 0]  # without seed 0, which runs first and starts the process
    training, export = float(trained["seconds"].mean()), float(trained["overhead_seconds"].mean())
    return {
        "seconds each": wall,
        "training": training,
        "overhead": wall - training,
        "export": export,
        "publish": mean(publishing),
        "Ray": wall - training - export - mean(publishing),
    }


def _publish_seconds(store: Store, sweep_name: str) -> list[float]:
    """Time repeated publications of a descendant's files, each under another name; seconds."""
    manifest = store.manifests("descendant", under=sweep_name)[0]
    seconds = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = store.download("descendant", manifest.name, Path(temporary) / "model")
        for number in range(PUBLISHED):
            began = time.perf_counter()
            store.publish("descendant", f"publishing/{number}", folder, manifest.metadata)
            seconds.append(time.perf_counter() - began)
    return seconds


if __name__ == "__main__":
    main()

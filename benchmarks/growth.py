"""python -m benchmarks.growth [--quick] [--out FILE.json]

What tenfold work costs: tenfold images, parameters and descendants, each beside the sweep it grew from. Sweeps on the
digits in one process, one descendant after another, from a learngene that is made in a temporary store first; both
sizes take turns. "Training" is what descendants spend in training and evaluation, by their own record; "everything" the
wall time of the sweep, with what it costs once. 1.0 is a cost that grows as the work does; below is better.

The parameters grow with the width, 48 to 160, at four layers; the seconds an image takes are divided by parameters.
How a sweep grows from 16 to 1,000 descendants on Ray is measured by `benchmarks.sweep_scale`.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import tempfile
import time
from functools import partial
from typing import Any

from benchmarks.digits import DIGITS, make_learngene
from benchmarks.measure import arguments, in_turn, machine, medians, publish
from ray_learngene.config import SweepConfig
from ray_learngene.sweeps.sweep import sweep

ROUNDS = 3
SMALL: dict[str, Any] = {"epochs": 2, "seeds": 1, "widths": "48"}
GROWN: dict[str, dict[str, Any]] = {
    "images": {"epochs": 20},
    "parameters": {"widths": "160"},
    "descendants": {"seeds": 10},
}


def main() -> None:
    args = arguments(__doc__)
    facts = machine()
    number = itertools.count()
    training: dict[str, list[float]] = {name: [] for name in ("small", *GROWN)}
    work: dict[str, dict[str, float]] = {}

    def run(store: str, name: str) -> float:
        settings = {**SMALL, **GROWN.get(name, {})}
        config = SweepConfig(
            store=store, name=f"{name}-{next(number)}", learngene="digits", depths="4", arms=("scratch",),
            in_process=True, siblings=1, **DIGITS, **settings,
        )  # fmt: skip
        began = time.perf_counter()
        table = sweep(config)
        seconds = time.perf_counter() - began
        training[name].append(float(table["seconds"].sum()))
        work[name] = {
            "images": float(table["images"].iloc[0]),
            "parameters": float(table["params"].iloc[0]),
            "descendants": float(len(table)),
        }
        return seconds

    with tempfile.TemporaryDirectory() as store, contextlib.redirect_stdout(io.StringIO()):
        make_learngene(store)
        sides = {name: partial(run, store, name) for name in training}
        in_turn(sides, 1)
        for seconds in training.values():
            seconds.clear()
        wall = in_turn(sides, 1 if args.quick else ROUNDS)
    trained, whole = medians(training), medians(wall)
    rows = []
    for name in GROWN:
        times = work[name][name] / work["small"][name]
        rows.append(
            {
                "more": name,
                "from": work["small"][name],
                "to": work[name][name],
                "training, each": trained[name] / trained["small"] / times,
                "everything, each": whole[name] / whole["small"] / times,
                "raw_training_seconds": {"small": training["small"], "grown": training[name]},
                "raw_wall_seconds": {"small": wall["small"], "grown": wall[name]},
            }
        )
    publish("growth", args, facts, rows)


if __name__ == "__main__":
    main()

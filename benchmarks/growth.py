"""python -m benchmarks.growth [--quick] [--out FILE.json]

Measures the cost of tenfold work: ten times the images, the parameters or the descendants of a small sweep. Sweeps run
on the digits in one process, one descendant after another. The learngene is made first, in a temporary store. Small and
grown sweeps alternate.

"Training" is the time that descendants spend in training and evaluation, from their records. "Everything" is the wall
time of the sweep, with its fixed cost. 1.0 means that the cost grows in proportion to the work; less is better.

Parameters grow with the width, from 48 to 160, at four layers; seconds per image are divided by parameters.
`benchmarks.sweep_scale` measures a sweep on Ray from 16 to 1,000 descendants.
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
            scratch="epochs", in_process=True, siblings=1, **DIGITS, **settings,
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

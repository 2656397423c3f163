"""python -m benchmarks.first_step [--quick] [--out FILE.json]

How long a command that trains takes until it trains: `learngene sweep` and `learngene distill`, each in this process
(`--in-process`, `--workers 0`) and on a Ray that it starts itself, on the digits, from a learngene that is made in a
temporary store first. Reported: the seconds from the start of the command to the first training step (to the published
artefact, less the seconds of training, evaluation and export that its record states), and to its end.

What that consists of is measured beside it, each as a process of its own less the start of an interpreter: the imports
of torch and timm, of Ray, of DeepSpeed, and starting and stopping Ray with one worker that does nothing. All take
turns; medians are compared.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.measure import arguments, machine, medians, publish, seconds_of
from benchmarks.sweep_overhead import DIGITS, make_learngene
from ray_learngene.manifest import Manifest
from ray_learngene.store import Store

RECIPE = "digits.yaml"
RAY = "import ray; ray.init('local', log_to_driver=False); ray.get(ray.remote(lambda: None).remote()); ray.shutdown()"
PARTS = {
    "import torch, timm": "import ray_learngene.torchvision_cpu, torch, timm",
    "import ray, tune, train": "import ray, ray.tune, ray.train.torch",
    "import torch, deepspeed": "import torch, deepspeed",
    "import ray, start and stop it": RAY,
}


def main() -> None:
    args = arguments(__doc__)
    facts = machine()
    with tempfile.TemporaryDirectory() as store:
        make_learngene(store)
        Path(store, RECIPE).write_text(json.dumps({**DIGITS, "epochs": 1}))
        commands: dict[str, Callable[[str], tuple[float, float]]] = {
            "sweep --in-process": partial(_sweep, store, "--in-process"),
            "sweep": partial(_sweep, store),
            "distill --workers 0": partial(_distill, store, "--workers", 0),
            "distill --workers 1": partial(_distill, store, "--workers", 1),
        }
        parts = {name: [sys.executable, "-c", code] for name, code in {"python -c pass": "pass", **PARTS}.items()}
        seconds: dict[str, list[float]] = {name: [] for name in parts}
        taken: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
        for number in range(2 if args.quick else 4):
            for name, part in parts.items():
                seconds[name].append(seconds_of(partial(subprocess.run, part, check=True, capture_output=True)))
            for name, command in commands.items():
                taken[name].append(command(f"round-{number}-{name.replace(' ', '')}"))
    # the first round fills caches
    before = {name: [first for first, _ in each[1:]] for name, each in taken.items()}
    whole = {name: [end for _, end in each[1:]] for name, each in taken.items()}
    pause = medians({name: each[1:] for name, each in seconds.items()})
    rows: list[dict[str, Any]] = [
        {"what": name, "to the first step (s)": medians(before)[name], "whole (s)": medians(whole)[name],
         "raw_first_step": before[name], "raw_whole": whole[name]}
        for name in commands
    ]  # fmt: skip
    rows += [
        {"what": name, "to the first step (s)": pause[name] - pause["python -c pass"], "whole (s)": "",
         "raw_whole": seconds[name][1:]}
        for name in PARTS
    ]  # fmt: skip
    publish("first_step", args, facts, rows)


def _run(store: str, *words: object) -> tuple[datetime, float]:
    """When a command began, and how long it took."""
    began, clock = datetime.now(UTC), time.perf_counter()
    command = [
        sys.executable,
        "-m",
        "ray_learngene",
        *map(str, words),
        "--store",
        store,
        "--config",
        f"{store}/{RECIPE}",
    ]
    subprocess.run(command, check=True, capture_output=True)
    return began, time.perf_counter() - clock


def _until(began: datetime, manifest: Manifest, trained: float) -> float:
    """Seconds from the beginning of a command to its first step."""
    return (datetime.fromisoformat(manifest.created) - began).total_seconds() - trained


def _sweep(store: str, *words: object) -> tuple[float, float]:
    *flags, name = words
    began, seconds = _run(
        store, "sweep", "--name", name, "--learngene", "digits", "--depths", 4, "--arms", "sws", *flags
    )
    (manifest,) = Store(store).manifests("descendant", under=str(name))
    row = manifest.metadata["row"]
    return _until(began, manifest, row["seconds"] + row["overhead_seconds"]), seconds


def _distill(store: str, *words: object) -> tuple[float, float]:
    *flags, name = words
    ancestry = "store:ancestries/digits"
    began, seconds = _run(store, "distill", "--name", name, "--ancestry", ancestry, "--preset", "nano", *flags)
    manifest = Store(store).manifest("learngene", str(name))
    return _until(began, manifest, manifest.metadata["cost"]["seconds"]), seconds


if __name__ == "__main__":
    main()

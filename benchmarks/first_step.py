"""python -m benchmarks.first_step [--quick] [--out FILE.json]

Measures the time from a command's start to its first training step. Commands are `learngene sweep` and `learngene
distill` on the digits, in a single process (`--in-process`, `--workers 0`) and on a Ray that the command starts. The
learngene is made first, in a temporary store.

Reported: the seconds to the end of the command, and to the first training step. The latter are the seconds to the
published artefact, minus those of training and evaluation and, for a descendant, of export, as its record states them.
(A learngene's record does not state its export time, a few tenths of a second.)

The parts of this time are measured too, each in its own process, minus the start of an interpreter: the imports of
torch and timm, of Ray, and of DeepSpeed, and starting and stopping Ray with one idle worker. All alternate; medians are
compared.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.digits import make_learngene, write_recipe
from benchmarks.measure import arguments, machine, medians, publish, run_command
from ray_learngene.store.manifest import Manifest
from ray_learngene.store.store import Store

RECIPE = "digits.yaml"
RAY = "import ray; ray.init('local', log_to_driver=False); ray.get(ray.remote(lambda: None).remote()); ray.shutdown()"
NOTHING = "python -c pass"
PARTS = {
    NOTHING: "pass",
    "import torch, timm": "import ray_learngene.torchvision_cpu, torch, timm",
    "import ray, tune, train": "import ray, ray.tune, ray.train.torch",
    "import torch, deepspeed": "import torch, deepspeed",
    "import ray, start and stop it": RAY,
}
ROUNDS = 3


def main() -> None:
    args = arguments(__doc__)
    facts = machine()
    with tempfile.TemporaryDirectory() as store:
        make_learngene(store)
        write_recipe(Path(store, RECIPE), epochs=1)
        commands: dict[str, Callable[[str], tuple[float, float]]] = {
            "sweep --in-process": partial(_sweep, store, "--in-process"),
            "sweep": partial(_sweep, store),
            "distill --workers 0": partial(_distill, store, "--workers", 0),
            "distill --workers 1": partial(_distill, store, "--workers", 1),
        }
        parts: dict[str, list[float]] = {name: [] for name in PARTS}
        first_step: dict[str, list[float]] = {name: [] for name in commands}
        whole: dict[str, list[float]] = {name: [] for name in commands}
        for number in range(1 + (1 if args.quick else ROUNDS)):  # the first round fills caches
            for name, code in PARTS.items():
                parts[name].append(run_command("-c", code)[0])
            for name, command in commands.items():
                for numbers, seconds in zip(
                    (first_step, whole), command(f"round-{number}-{name.replace(' ', '')}"), strict=True
                ):
                    numbers[name].append(seconds)
    first_step, whole, parts = ({k: v[1:] for k, v in numbers.items()} for numbers in (first_step, whole, parts))
    rows: list[dict[str, Any]] = [
        {
            "what": name,
            "to the first step (s)": medians(first_step)[name],
            "whole (s)": medians(whole)[name],
            "raw": {"to the first step": first_step[name], "whole": whole[name]},
        }
        for name in commands
    ]
    rows += [
        {
            "what": name,
            "to the first step (s)": "",
            "whole (s)": medians(parts)[name] - medians(parts)[NOTHING],
            "raw": {"whole": parts[name]},
        }
        for name in PARTS
    ]
    publish("first_step", args, facts, rows)


def _sweep(store: str, *words: object) -> tuple[float, float]:
    *flags, name = words
    began = datetime.now(UTC)
    seconds = _run(store, "sweep", name, "--learngene", "digits", "--depths", 4, "--arms", "sws", *flags)
    (manifest,) = Store(store).manifests("descendant", under=str(name))
    row = manifest.metadata["row"]
    return _since(began, manifest) - row["seconds"] - row["overhead_seconds"], seconds


def _distill(store: str, *words: object) -> tuple[float, float]:
    *flags, name = words
    began = datetime.now(UTC)
    seconds = _run(store, "distill", name, "--ancestry", "store:ancestries/digits", "--preset", "nano", *flags)
    manifest = Store(store).manifest("learngene", str(name))
    return _since(began, manifest) - manifest.metadata["cost"]["seconds"], seconds


def _run(store: str, command: str, name: object, *words: object) -> float:
    here = ("--store", store, "--config", f"{store}/{RECIPE}")
    return run_command("-m", "ray_learngene", command, "--name", name, *words, *here)[0]


def _since(began: datetime, manifest: Manifest) -> float:
    return (datetime.fromisoformat(manifest.created) - began).total_seconds()


if __name__ == "__main__":
    main()

"""python -m benchmarks.memory [--quick] [--out FILE.json]

Measures the peak memory of every command in MiB: the proportional set size (a shared page counts once) of the command
and all processes that it starts, sampled ten times a second. "Itself" is the command's own process; "others" are Ray's
processes and its workers. Digits and a tiny size show what the program itself needs. A real model adds `memory` of
`learngene plan`; a real image set adds a batch per loader process.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from benchmarks.digits import ANCESTRY_SIZE, write_recipe
from benchmarks.measure import arguments, machine, publish

SAMPLE_SECONDS = 0.1
ITSELF, OTHERS = "itself", "others"
MIB = 2**20


def main() -> None:
    args = arguments(__doc__)
    facts = machine()
    with tempfile.TemporaryDirectory() as folder:
        commands = _commands(folder)
        rows = [_row(words) for words in (commands[:3] if args.quick else commands)]
    publish("memory", args, facts, rows)


def _commands(folder: str) -> list[list[str]]:
    """List every command, in an order that satisfies their dependencies."""
    recipe = write_recipe(Path(folder, "digits.yaml"), epochs=1)
    store = ["--store", f"{folder}/store"]
    training = [*store, "--config", str(recipe)]
    ancestry = ["--ancestry", "store:ancestries/a"]
    sizes = ["--learngene", "g", "--depths", "3,4", "--arms", "sws", "--seeds", "2"]
    model = f"{folder}/model"
    distill = ["distill", *ancestry, "--preset", "nano", *training]
    arms = {"sws": {"method": "sws"}, "scratch": {"method": "scratch", "tune": "full"}}
    bench = write_recipe(Path(folder, "bench.yaml"), epochs=1, arms=arms)
    return [
        ["--help"],
        ["ancestry", "--name", "a", "--model", "deit_tiny_patch16_224", "--model-args", json.dumps(ANCESTRY_SIZE),
         "--workers", "0", *training],
        ["distill", "--name", "g", "--workers", "0", *distill[1:]],
        ["distill", "--name", "g1", "--workers", "1", *distill[1:]],
        ["distill", "--name", "g2", "--workers", "2", *distill[1:]],
        ["softlabels", *distill[1:]],
        ["plan", "--learngene", "g", *store, "--budgets", "params<=100k"],
        ["sweep", "--name", "here", "--in-process", "--siblings", "1", *sizes, *training],
        ["sweep", "--name", "side", "--in-process", *sizes, *training],
        ["sweep", "--name", "ray", *sizes, *training],
        ["bench", "--config", str(bench), "--name", "b", *ancestry, "--preset", "nano", "--depth", "4", "--in-process",
         "--depths", "3,4", "--seeds", "1", "--tune-epochs", "1", "--search-epochs", "1", *store,
         "--out", f"{folder}/out"],
        ["list", *store],
        ["pull", *store, "--max-params", "1M", "--out", model],
        ["evaluate", model, "--data", "digits"],
        ["gc", *store],
    ]  # fmt: skip


def _row(words: list[str]) -> dict[str, Any]:
    began = time.perf_counter()
    command = [sys.executable, "-m", "ray_learngene", *words]
    with tempfile.TemporaryFile() as output, subprocess.Popen(command, stdout=output, stderr=output) as process:
        most: dict[str, float] = {}
        while process.poll() is None:
            now = _held(psutil.Process(process.pid))
            if sum(now.values()) > sum(most.values()):
                most = now
            time.sleep(SAMPLE_SECONDS)
        if process.returncode:
            output.seek(0)
            raise SystemExit(f"{' '.join(command)}: {output.read().decode()}")
    name = " ".join([words[0], *(word for pair in _pairs(words) for word in pair)])
    return {"command": name, "MiB": sum(most.values()), **{kind: most.get(kind, 0.0) for kind in (ITSELF, OTHERS)},
            "seconds": time.perf_counter() - began}  # fmt: skip


def _pairs(words: list[str]) -> list[list[str]]:
    """Return the flags that distinguish rows of one command."""
    pairs = [[flag, words[words.index(flag) + 1]] for flag in ("--workers", "--siblings") if flag in words]
    return [*pairs, *([["--in-process"]] if "--in-process" in words else [])]


def _held(process: psutil.Process) -> dict[str, float]:
    """Return the MiB of a process and of the processes that it started."""
    held = {ITSELF: 0.0, OTHERS: 0.0}
    for each in [process, *process.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):  # psutil raises it for zombies too
            held[ITSELF if each == process else OTHERS] += each.memory_full_info().pss / MIB
    return held


if __name__ == "__main__":
    main()

"""Code that benchmarks share: alternating timing of sides, facts about the machine, and the written record.

A machine's speed drifts by more than the differences that matter, so times of different runs are never compared. Every
ratio is one of medians within one run, in which the sides alternated, or the median of the ratios of its rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.table import Table

from ray_learngene.provenance import provenance
from ray_learngene.terminal import print_table

ROOT = Path(__file__).parents[1]


def arguments(
    description: str | None, add: Callable[[argparse.ArgumentParser], None] = lambda parser: None
) -> argparse.Namespace:
    """Parse `--quick`, `--out` and the benchmark's own flags (from `add`); the module docstring is the help."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--quick", action="store_true", help="a few rounds to check that it runs; not a measurement")
    parser.add_argument("--out", type=Path, help="write the raw numbers to this JSON file")
    add(parser)
    return parser.parse_args()


def machine() -> dict[str, Any]:
    """Describe the hardware of this process."""
    facts: dict[str, Any] = {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "omp_num_threads": os.environ.get("OMP_NUM_THREADS"),
        "load_before": os.getloadavg()[0],
    }
    if torch.cuda.is_available():
        facts |= {"gpu": torch.cuda.get_device_name(), "gpus": torch.cuda.device_count(), "cuda": torch.version.cuda}
    return facts


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def seconds_of(call: Callable[[], Any], finish: Callable[[], Any] = lambda: None) -> float:
    """Time one call, including `finish`, which waits for a device or for other workers; seconds."""
    began = time.perf_counter()
    call()
    finish()
    return time.perf_counter() - began


def peak_of(call: Callable[[], object]) -> int:
    """Return the most bytes that a call has allocated at once on the CPU, by torch's profiler."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as recorded:
        call()
    profiler: Any = recorded.profiler
    allocations = [event for event in profiler.kineto_results.events() if event.name() == "[memory]"]
    in_use, peak = 0, 0
    for event in sorted(allocations, key=lambda event: event.start_ns()):
        in_use += event.nbytes()
        peak = max(peak, in_use)
    return peak


def run_command(*words: object) -> tuple[float, float]:
    """Run `python` with these arguments in the repository; return its wall and CPU seconds.

    Raises:
        SystemExit: the command failed; the message has the end of its output.
    """
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    command = [sys.executable, *map(str, words)]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
    seconds, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    if ran.returncode:
        raise SystemExit(f"{' '.join(command)}: {(ran.stdout + ran.stderr)[-3000:]}")
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def in_turn(sides: Mapping[str, Callable[[], float]], rounds: int, shuffle: bool = False) -> dict[str, list[float]]:
    """Call the sides alternately, A B C A B C ..., and collect the numbers that they return.

    Args:
        shuffle: Shuffle the order of every round, in case a side slows down the next one.
    """
    numbers: dict[str, list[float]] = {name: [] for name in sides}
    order, draws = list(sides), random.Random(0)
    for _ in range(rounds):
        if shuffle:
            draws.shuffle(order)
        for name in order:
            numbers[name].append(sides[name]())
    return numbers


def medians(numbers: Mapping[str, Sequence[float]]) -> dict[str, float]:
    return {name: median(values) for name, values in numbers.items()}


def paired(first: Sequence[float], second: Sequence[float]) -> float:
    """Return the median over rounds of first / second; a machine that is slow for some rounds slows both sides."""
    return median(one / other for one, other in zip(first, second, strict=True))


def publish(name: str, args: argparse.Namespace, facts: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> None:
    """Print rows as a table; write them to the file with raw numbers, the machine, versions and revision.

    Args:
        facts: Result of `machine()` before the measurement.
        rows: One flat record per line of the table. Lists and dicts are raw numbers, for the file only.
    """
    shown = [key for key, value in rows[0].items() if not isinstance(value, list | dict)]
    table = Table(*shown, title=f"{name}{' (quick: not a measurement)' if args.quick else ''}")
    for row in rows:
        table.add_row(*(_text(row[key]) for key in shown))
    print_table(table)
    if args.out:
        record = {
            "benchmark": name,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "quick": args.quick,
            "machine": {**facts, "load_after": os.getloadavg()[0]},
            **provenance(),
            "rows": rows,
        }
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(record, indent=2) + "\n")


def _text(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"

"""Command lines of the product for the runs of the plan, and one of them run to its end with its cost."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from benchmarks.measure import ROOT
from benchmarks.proof.plan import Plan, Run

ARCHITECTURE = "deit_small_patch16_224"


@dataclass(frozen=True)
class Places:
    """Where the product reads images and keeps its work."""

    store: Path
    data_dir: Path

    def flags(self, plan: Plan, data: str) -> dict[str, Any]:
        return {"store": self.store, "data": data, "data_dir": self.data_dir, **plan.images}

    def has(self, kind: str, name: str) -> bool:
        return (self.store / kind / name / "manifest.json").exists()


def words(command: str, flags: Mapping[str, Any]) -> list[str]:
    """A command of the product as `python -m` takes it."""
    line = ["-m", "ray_learngene", command]
    for name, value in flags.items():
        flag = f"--{name.replace('_', '-')}"
        if isinstance(value, bool):
            line.append(flag if value else f"--no-{flag[2:]}")
        elif isinstance(value, dict):
            line += [flag, yaml.safe_dump(value, default_flow_style=True, width=10_000).strip()]
        elif isinstance(value, list | tuple):
            line += [flag, *map(str, value)]
        else:
            line += [flag, str(value)]
    return line


def base_commands(plan: Plan, data: str, places: Places) -> list[list[str]]:
    """Make the untrained learngene that gives a sweep its size and preprocessing."""
    untrained = {"epochs": 0, "warmup_epochs": 0, "batch_size": 8, "train_share": 0.05, "val_share": 0.05, "workers": 0}
    name = base_name(plan, data)
    model = {"model": ARCHITECTURE, "model_args": _size(plan), "image_size": plan.base["image"]}
    source = {"source": f"store:ancestries/{name}", "method": "weight-selection"}
    return [
        words("ancestry", {"name": name, **places.flags(plan, data), **model, **untrained}),
        words("extract", {"name": name, "store": places.store, **source}),
    ]


def _size(plan: Plan, depth: int | None = None) -> dict[str, Any]:
    """Keyword arguments of a model; default: the largest."""
    base = plan.base
    return {
        "img_size": base["image"],
        "patch_size": base["patch"],
        "embed_dim": base["width"],
        "depth": depth or base["depth"],
        "num_heads": base["heads"],
        "class_token": False,
        "global_pool": "avg",
    }


def teacher_name(data: str) -> str:
    return f"teacher-{_slug(data)}"


def teacher_command(plan: Plan, data: str, places: Places) -> list[str]:
    flags = {"name": teacher_name(data), **places.flags(plan, data), **plan.teacher, "workers": 0}
    return words("ancestry", flags)


def distill_command(plan: Plan, run: Run, places: Places) -> list[str]:
    """The distillation of a learngene arm."""
    run = plan.distilled_as(run)
    learngene, start = plan.learngenes[run.arm], plan.started_from(run)
    flags = {
        "name": sweep_name(run),
        **places.flags(plan, run.data),
        **({"ancestry": f"store:ancestries/{teacher_name(run.data)}"} if learngene.get("alpha", 1) else {}),
        "student": ARCHITECTURE,
        "student_args": _size(plan, learngene.get("depth")),
        "epochs": run.epochs,
        "seed": run.seed,
        "lr": run.lr,
        **plan.settings,
        **{name: value for name, value in learngene.items() if name not in ("arm", "depth")},
        **(plan.search["split"] if run.searching else {}),
        **({"start": sweep_name(start)} if start else {}),
        "workers": 0,
    }
    return words("distill", flags)


def sweep_command(plan: Plan, runs: Sequence[Run], places: Places) -> list[str]:
    """One sweep for runs that can share a loader; a search of a learngene measures its descendants untuned."""
    first, shared = runs[0], runs[0].arm in plan.learngenes
    tuning = plan.tuning_of(first.arm) if shared else {"epochs": first.epochs, "lr_share": 1}
    made = plan.learngenes[plan.distilled_as(first).arm] if shared else {"method": "scratch"}
    taught = {}
    if first.arm == "distilled" or tuning.get("taught"):
        taught = {"ancestry": f"store:ancestries/{teacher_name(first.data)}"}
    flags = {
        "name": sweep_name(first),
        **places.flags(plan, first.data),
        "learngene": sweep_name(plan.distilled_as(first)) if shared else base_name(plan, first.data),
        "arms": [made.get("arm", made["method"].partition(":")[0])],
        "depths": ",".join(str(run.depth) for run in runs),
        "epochs": 0 if shared and first.searching else tuning["epochs"],
        "scratch": "epochs",  # not those of equal cost
        "seed": first.seed,
        "lr": first.lr * tuning["lr_share"],
        **plan.settings,
        **{name: tuning[name] for name in ("warmup_epochs",) if name in tuning},
        **(plan.search["split"] if first.searching else {}),
        **taught,
        "in_process": True,
        "siblings": len(runs),
    }
    return words("sweep", flags)


def base_name(plan: Plan, data: str) -> str:
    return f"base-{_slug(data)}-w{plan.base['width']}"


def sweep_name(run: Run) -> str:
    kind = "search-" if run.searching else ""
    return f"{kind}{_slug(run.data)}-{run.arm}-e{run.epochs}-s{run.seed}-lr{run.lr:g}"


def _slug(data: str) -> str:
    return data.rpartition("/")[2]


class Interrupted(Exception):
    """SIGTERM came; the command has written a checkpoint."""


def run_command(line: Sequence[str], tally: Path) -> dict[str, float]:
    """Run a command to its end, with its output on this process's.

    Args:
        tally: File with the cost so far. An interrupted command that runs again adds to it.

    Returns:
        `wall_seconds` and `cpu_seconds` (user and system) of all attempts.

    Raises:
        Interrupted: this process received SIGTERM, which it has passed on.
        subprocess.CalledProcessError: the command failed.
    """
    before = json.loads(tally.read_text()) if tally.exists() else {"wall_seconds": 0.0, "cpu_seconds": 0.0}
    tally.parent.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    began, used = time.monotonic(), _children_seconds()
    process = subprocess.Popen([sys.executable, *line], cwd=ROOT, env=environment)
    with _passing_on_sigterm(process) as terminated:
        while True:
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                spent = _process_seconds(process.pid)
            else:
                spent = _children_seconds() - used
            cost = {
                "wall_seconds": before["wall_seconds"] + time.monotonic() - began,
                "cpu_seconds": before["cpu_seconds"] + spent,
            }
            tally.write_text(json.dumps(cost))
            if process.returncode is not None:
                break
    if terminated():
        raise Interrupted
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, list(line))
    return cost


def _children_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _process_seconds(pid: int) -> float:
    """CPU seconds of a running process with its threads; Linux only."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class _passing_on_sigterm:
    """Pass SIGTERM on to a process; the value says whether one came."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process, self.came = process, False

    def __enter__(self) -> Callable[[], bool]:
        self.earlier = signal.signal(signal.SIGTERM, self._handle)
        return lambda: self.came

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGTERM, self.earlier)

    def _handle(self, *_: object) -> None:
        self.came = True
        self.process.send_signal(signal.SIGTERM)

"""python -m benchmarks.proof.run --store DIR --data-dir DIR [--rows FILE.jsonl] [--plan FILE.yaml]
    [--share SHARE] [--limit SECONDS] [--dry-run]

Train the runs of plan.yaml in order of priority, one process with one thread, and append a row for each to the rows.
Runs that have a row are skipped, so the same command goes on from a committed rows file on a new machine. Where the
store is still there, it also goes on inside a run, from its last checkpoint. SIGTERM writes one first.

--store holds checkpoints, models and the teacher. --data-dir holds the image sets (see README.md).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas

from benchmarks.measure import machine
from benchmarks.proof.commands import (
    Interrupted,
    Places,
    base_commands,
    base_name,
    distill_command,
    run_command,
    sweep_command,
    sweep_name,
    teacher_command,
    teacher_name,
)
from benchmarks.proof.plan import PLAN, Plan, Run, pending
from ray_learngene.provenance import provenance
from ray_learngene.training.flops import TRAINING_PASSES

ROWS = Path(__file__).with_name("rows.jsonl")
COLUMNS = (
    *(
        "top1_untuned",
        "params",
        "macs",
        "steps",
        "images",
        "flops",
        "teacher_flops",
        "fit_steps",
        "fit_flops",
        "val_loss",
    ),
)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--store", type=Path, required=True, help="folder for checkpoints, models and the teacher")
    parser.add_argument("--data-dir", type=Path, required=True, help="folder with the image sets")
    parser.add_argument("--rows", type=Path, default=ROWS, help="finished runs, one JSON object a line")
    parser.add_argument("--plan", type=Path, default=PLAN, help="another plan, to try something")
    parser.add_argument("--share", type=float, help="part of the training images; each share has a store of its own")
    parser.add_argument("--limit", type=float, default=float("inf"), help="start nothing new after this many seconds")
    parser.add_argument("--dry-run", action="store_true", help="print the next command and stop")
    args = parser.parse_args(argv)
    places, began = Places(args.store.absolute(), args.data_dir.absolute()), time.monotonic()
    while time.monotonic() - began < args.limit:
        plan = Plan(args.plan.read_text(), args.share)  # again, as it may have been extended meanwhile
        runs = pending(plan, read_rows(args.rows))
        if not runs:
            return print("nothing left to train")
        if args.dry_run:
            return print(sys.executable, *sweep_command(plan, runs, places))
        try:
            rows = train(plan, runs, places)
        except Interrupted:
            sys.exit("interrupted: the same command goes on from the last checkpoint")
        with args.rows.open("a") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
        for row in rows:
            print(
                json.dumps({name: row[name] for name in ("arm", "depth", "epochs", "seed", "lr", "top1")}), flush=True
            )
    print("time is up")


def read_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def train(plan: Plan, runs: Sequence[Run], places: Places) -> list[dict[str, Any]]:
    """Train runs in one sweep, after the models that it needs; returns their rows."""
    data, tallies = runs[0].data, places.store / "proof"
    if not places.has("learngenes", base_name(plan, data)):
        for line in base_commands(plan, data, places):
            run_command(line, tallies / "base.json")
    teacher = _teacher(plan, data, places, tallies) if plan.taught(runs[0].arm) else None
    loads, origin = [os.getloadavg()[0]], provenance()
    name = sweep_name(runs[0])
    learngene = _learngene(plan, runs[0], places, tallies) if runs[0].arm in plan.learngenes else None
    try:
        cost = run_command(sweep_command(plan, runs, places), tallies / f"{name}.json")
    except subprocess.CalledProcessError:
        cost = json.loads((tallies / f"{name}.json").read_text())
        if not _all_settled(places.store, runs):
            raise
    loads.append(os.getloadavg()[0])
    results = _results(places.store, runs[0])
    wall = sum(results.loc[run.depth]["seconds"] or 0.0 for run in runs)
    facts = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {name: value for name, value in machine().items() if name in ("cpu", "cores", "omp_num_threads")},
        "load": loads,
        "sweep": {"name": name, "models": len(runs), **cost},
        "teacher": teacher,
        "learngene": learngene,
        **origin,
    }
    return [_row(plan, run, results.loc[run.depth].to_dict(), cost, wall, facts) for run in runs]


def _row(
    plan: Plan, run: Run, result: Mapping[str, Any], cost: Mapping[str, float], wall: float, facts: Mapping[str, Any]
) -> dict[str, Any]:
    """One finished run. Its CPU seconds are its part of the sweep's, by the time that it took."""
    finished = result["status"] == "finished"
    share = (result["seconds"] or 0.0) / wall if wall else 1 / facts["sweep"]["models"]
    return {
        "key": plan.key(run),
        **asdict(run),
        "width": plan.base["width"],
        "share": plan.images.get("train_share", 1),
        "status": result["status"],
        "top1": result["top1"] if finished else None,
        **{name: result.get(name) if finished else None for name in COLUMNS},
        "wall_seconds": round(share * cost["wall_seconds"], 1),
        "cpu_seconds": round(share * cost["cpu_seconds"], 1),
        **facts,
    }


def _results(store: Path, run: Run) -> pandas.DataFrame:
    """The results table of a run's sweep, by depth, with None where a value is missing."""
    table = pandas.read_parquet(store / "sweeps" / sweep_name(run) / "results.parquet")
    return table.astype(object).where(table.notna(), None).set_index("depth")


def _all_settled(store: Path, runs: Sequence[Run]) -> bool:
    """Whether every run has finished or diverged: the command fails where one of them diverged."""
    try:
        results = _results(store, runs[0])
    except FileNotFoundError:
        return False
    depths = [run.depth for run in runs]
    return set(depths) <= set(results.index) and set(results.loc[depths]["status"]) <= {"finished", "diverged"}


def _teacher(plan: Plan, data: str, places: Places, tallies: Path) -> dict[str, Any]:
    """Train the teacher where the store has none; returns what its manifest and its tally say of it."""
    name = teacher_name(data)
    tally = tallies / f"{name}.json"
    if not places.has("ancestries", name):
        run_command(teacher_command(plan, data, places), tally)
    return made(places, "ancestries", name, "model.safetensors", tally)


def _learngene(plan: Plan, run: Run, places: Places, tallies: Path) -> dict[str, Any]:
    """Distil the learngene of a run where the store has none; returns what its manifest and its tally say of it."""
    source, start = plan.distilled_as(run), plan.started_from(run)
    before = {"start": _learngene(plan, start, places, tallies)} if start else {}
    name = sweep_name(source)
    tally = tallies / f"{name}-distillation.json"
    if not places.has("learngenes", name):
        run_command(distill_command(plan, run, places), tally)
    distilled = made(places, "learngenes", name, "learngene.safetensors", tally)
    if plan.reads_answers(source.arm) and not (start and plan.reads_answers(start.arm)):
        distilled["cost"] = _in_full(distilled["cost"], plan, source, _teacher(plan, run.data, places, tallies))
    return {"name": name, "arm": source.arm, **distilled, **before}


def _in_full(cost: Mapping[str, Any], plan: Plan, run: Run, teacher: Mapping[str, Any]) -> dict[str, Any]:
    """Charge a distillation for every stored answer that it read, also where another run had computed it before."""
    a_pass = teacher["cost"]["flops"] / teacher["cost"]["images"] / TRAINING_PASSES
    images = cost["images"] * min(1, plan.learngenes[run.arm]["view_epochs"] / run.epochs)
    return {**cost, "teacher_flops": round(images * a_pass)}


def made(places: Places, kind: str, name: str, weights: str, tally: Path) -> dict[str, Any]:
    """What the manifest of an artefact and the tally of its making say of it."""
    manifest = json.loads((places.store / kind / name / "manifest.json").read_text())
    metadata = manifest["metadata"]
    return {
        "sha256": next(file["sha256"] for file in manifest["files"] if file["path"] == weights),
        "metrics": metadata["metrics"],
        "cost": metadata["cost"],
        **json.loads(tally.read_text()),
    }


if __name__ == "__main__":
    main()

"""python -m benchmarks.proof.authors --sws FOLDER --store DIR --data-dir DIR [--rows FILE.jsonl]

Run the authors' SWS program as authors.yaml says: their auxiliary model is distilled, then every size is tuned. Append
a row for each size. Runs that have rows are skipped, and an interrupted run goes on from the checkpoint of its last
epoch.

--sws is a checkout of github.com/AlphaXia/SWS. --store holds the teacher of the proof. --data-dir holds CIFAR-10.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from benchmarks.measure import machine
from benchmarks.proof.commands import Interrupted, Places, run_command, teacher_name
from benchmarks.proof.plan import Plan
from benchmarks.proof.run import made, read_rows
from benchmarks.rivals_sws import STAGES
from ray_learngene.methods.sws import stage_of_layer
from ray_learngene.models.costs import macs
from ray_learngene.models.specs import Spec
from ray_learngene.provenance import fingerprint, provenance

PLAN, ROWS = (Path(__file__).with_name(f"authors.{kind}") for kind in ("yaml", "jsonl"))
DATA, IMAGES, CLASSES = "cifar10", 50_000, 10


class Program:
    """Calls of the authors' program for a run, and where they write."""

    def __init__(self, plan: Plan, settings: Mapping[str, Any], run: Mapping[str, Any], places: Places) -> None:
        self.plan, self.settings, self.run, self.places = plan, settings, run, places

    def folder(self, depth: int | None = None) -> Path:
        """Where a stage writes; runs with the same distillation share its auxiliary model."""
        first = self.places.store / "authors" / self.key("seed", "distill", "searching")
        return first if depth is None else first / f"{self.key()}-{depth}"

    def key(self, *of: str) -> str:
        """Hash of what decides the run, or of these parts of it."""
        settings = {name: value for name, value in self.settings.items() if name != "runs"}
        run = {name: self.run.get(name) for name in of or ("seed", "distill", "searching", "tune")}
        return fingerprint({**settings, **run, "images": self.plan.images, "base": self.plan.base})[:16]

    def line(self, checkout: Path) -> list[str]:
        """A command that trains what is not trained: the auxiliary model, then every size."""
        split = self.plan.search["split"] if self.run.get("searching") else {}
        images = {"data": DATA, "data_dir": str(self.places.data_dir), **split}
        images |= {name: self.plan.images[name] for name in ("check_images", "train_share")}
        teacher = teacher_folder(self.places.store)
        jobs = [self._job(depth) for depth in (None, *self.run["depths"]) if not self.done(depth)]
        words = [checkout, json.dumps(self.settings["size"]), teacher, json.dumps(images), json.dumps(jobs)]
        return ["-m", "benchmarks.proof.authors_main", *map(str, words)]

    def done(self, depth: int | None = None) -> bool:
        return len(self._log(depth)) == self._stage(depth)["epochs"]

    def top1(self, depth: int) -> float:
        """The accuracy of a descendant after its last epoch, in percent."""
        top1: float = self._log(depth)[-1]["test_acc1"]
        return top1

    def cost(self, depth: int | None = None) -> dict[str, Any]:
        """Steps, images and FLOPs (three forward passes a step) of a stage, and the seconds of its process."""
        base, batch = self.plan.base, self.plan.settings["batch_size"]
        held_out = self.plan.search["split"]["holdout"] if self.run.get("searching") else 0
        images = round(IMAGES * self.plan.images["train_share"] * (1 - held_out))
        steps = images // batch * self._stage(depth)["epochs"]
        size = {name: base[name] for name in ("width", "heads", "patch", "image")}
        each = macs(Spec(**size, depth=depth or self.settings["size"]["depth"], classes=CLASSES))
        spent = json.loads((self.folder(depth) / "cost.json").read_text())
        return {"steps": steps, "images": steps * batch, "macs": each, "flops": 6 * each * steps * batch, **spent}

    def _stage(self, depth: int | None) -> Mapping[str, Any]:
        stage: Mapping[str, Any] = self.run["distill" if depth is None else "tune"]
        return stage

    def _log(self, depth: int | None) -> list[dict[str, Any]]:
        log = self.folder(depth) / "log.txt"
        return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []

    def _job(self, depth: int | None) -> dict[str, Any]:
        folder, stage = self.folder(depth), self._stage(depth)
        flags = {**self.settings["flags"], **self.settings["distill" if depth is None else "tune"], **stage}
        flags |= {"seed": self.run["seed"], "output_dir": str(folder)}
        if depth is not None:
            flags["layers-source"] = ",".join(map(str, stage_of_layer(depth, tuple(STAGES))))
        if (folder / "checkpoint.pth").exists():
            flags["resume"] = str(folder / "checkpoint.pth")
        elif depth is not None:
            flags["load-gene"] = str(self.folder() / "checkpoint.pth")
        arguments = [word for name, value in flags.items() for word in (f"--{name}", value)]
        job = {"seed": self.run["seed"], "epochs": stage["epochs"], "depth": depth, "folder": str(folder)}
        return {**job, "arguments": [*arguments, *self.settings["switches"]]}


def teacher_folder(store: Path) -> Path:
    """The timm folder of the teacher in a store; each publication has a folder of its own."""
    return max((store / "ancestries" / teacher_name(DATA)).glob("*/config.json")).parent


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--sws", type=Path, required=True, help="checkout of the authors' code")
    parser.add_argument("--store", type=Path, required=True, help="folder with the teacher, and for checkpoints")
    parser.add_argument("--data-dir", type=Path, required=True, help="folder with the image sets")
    parser.add_argument("--rows", type=Path, default=ROWS, help="finished runs, one JSON object a line")
    parser.add_argument("--plan", type=Path, default=PLAN, help="another plan, to try something")
    args = parser.parse_args(argv)
    plan, settings = Plan(args.plan.read_text()), read_settings(args.plan)
    places, rows = Places(args.store.absolute(), args.data_dir.absolute()), read_rows(args.rows)
    for run in settings["runs"]:
        program, load = Program(plan, settings, run, places), os.getloadavg()[0]
        finished = {row["depth"] for row in rows if row["key"] == program.key()}
        left = [depth for depth in run["depths"] if depth not in finished]
        if not left:
            continue
        with suppress(Interrupted):
            run_command(program.line(args.sws.absolute()), places.store / "authors" / "tally.json")
        trained = [_row(program, depth, [load, os.getloadavg()[0]]) for depth in left if program.done(depth)]
        with args.rows.open("a") as file:
            file.writelines(json.dumps(row) + "\n" for row in trained)
        for row in trained:
            print({name: row[name] for name in ("depth", "epochs", "lr", "tuning", "top1")}, flush=True)
        if len(trained) < len(left):
            sys.exit("interrupted: the same command goes on from the last checkpoint")


def _row(program: Program, depth: int, load: list[float]) -> dict[str, Any]:
    """The row of a trained size, with the fields of the proof's rows."""
    run, places = program.run, program.places
    name = teacher_name(DATA)
    teacher = made(places, "ancestries", name, "model.safetensors", places.store / "proof" / f"{name}.json")
    shared = program.cost()
    passes = teacher["cost"]["flops"] / teacher["cost"]["images"] / 3
    spent = {name: shared.pop(name) for name in ("cpu_seconds", "wall_seconds")}
    return {
        "key": program.key(),
        "data": DATA, "arm": "authors", "depth": depth, "width": program.plan.base["width"], "seed": run["seed"],
        "epochs": run["distill"]["epochs"], "lr": run["distill"]["lr"], "tuning": run["tune"],
        "searching": bool(run.get("searching")), "top1": program.top1(depth), **program.cost(depth),
        "learngene": {"cost": {**shared, "teacher_flops": round(passes * shared["images"])}, **spent},
        "teacher": teacher, "load": load, "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {name: value for name, value in machine().items() if name in ("cpu", "cores", "omp_num_threads")},
        **provenance(),
    }  # fmt: skip


def read_settings(path: Path) -> dict[str, Any]:
    settings: dict[str, Any] = yaml.safe_load(path.read_text())["authors"]
    return settings


if __name__ == "__main__":
    main()

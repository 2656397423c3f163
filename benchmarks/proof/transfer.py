"""python -m benchmarks.proof.transfer --store DIR --sets DIR [--rows FILE.jsonl] [--plan FILE.yaml]

Tune learngenes of the proof on other image sets, as WAVE reports it, and append a row for each descendant. Each arm and
set has its own learning rate, from runs of half the length on a part of the training images. Runs that have a row are
skipped. Arms whose learngene the store lacks are left out until it has it.

--store holds the learngenes. --sets holds the image sets (see README.md).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas
import yaml

from benchmarks.measure import machine
from benchmarks.proof.commands import Interrupted, run_command, words
from benchmarks.proof.plan import Row, extended
from benchmarks.proof.run import read_rows
from ray_learngene.provenance import fingerprint, provenance

PLAN, ROWS = (Path(__file__).with_name(f"transfer.{kind}") for kind in ("yaml", "jsonl"))
MEASURES = ("top1_untuned", "top1", "steps", "images", "flops", "fit_flops", "seconds", "learngene_version")


@dataclass(frozen=True)
class Run:
    """The tuning of one arm on one set; `lr` is at a batch of 512."""

    set: str
    arm: str
    seed: int
    lr: float
    searching: bool


class Transfer:
    """The plan as transfer.yaml states it."""

    def __init__(self, text: str) -> None:
        self.values: dict[str, Any] = yaml.safe_load(text)

    def __getattr__(self, name: str) -> Any:
        return self.values[name]

    def key(self, run: Run) -> str:
        """Hash of everything that decides a run, except the weights of its learngene."""
        decisive = {**self.values, "sets": self.sets[run.set], "arms": self.arms[run.arm]}
        kept = {name: decisive[name] for name in ("base", "depth", "images", "settings", "sets", "arms")}
        split = self.search["split"] if run.searching else {}
        return fingerprint({**kept, **split, "seed": run.seed, "lr": run.lr})[:16]

    def runs(self, name: str, arms: Sequence[str], rows: Sequence[Row]) -> list[Run]:
        """The runs of a set whose learning rates are known: searches first."""
        found = []
        for arm in arms:
            scores = self._scores(name, arm, rows)
            grid = extended(
                sorted({*self.search["lrs"], *scores}), scores, self.search["factor"], self.search["limits"]
            )
            if set(grid) > scores.keys():
                found += [Run(name, arm, self.search["seed"], lr, True) for lr in grid]
            else:
                best = max(scores, key=lambda lr: scores[lr])
                found += [Run(name, arm, seed, best, False) for seed in self.seeds]
        done = {row["key"] for row in rows}
        return sorted((run for run in found if self.key(run) not in done), key=lambda run: not run.searching)

    def _scores(self, name: str, arm: str, rows: Sequence[Row]) -> dict[float, float]:
        tried = [row for row in rows if (row["set"], row["arm"], row["searching"]) == (name, arm, True)]
        keys = {row["lr"]: self.key(Run(name, arm, self.search["seed"], row["lr"], True)) for row in tried}
        return {row["lr"]: row["top1"] or -1.0 for row in tried if row["key"] == keys[row["lr"]]}

    def command(self, runs: Sequence[Run], store: Path, sets: Path) -> list[str]:
        """One sweep: all arms of the runs from one data loader, so the set is read once."""
        first, images = runs[0], dict(self.sets[runs[0].set])
        epochs, folder = images.pop("epochs"), images.pop("folder", None)
        if folder:
            images["data"] = sets / folder
        if "data_dir" in images:
            images["data_dir"] = sets / images["data_dir"]
        arms = [self.arms[arm] for arm in dict.fromkeys(run.arm for run in runs)]
        flags = {
            "name": sweep_name(first),
            "store": store,
            **self.images,
            **images,
            "learngene": self.base,
            "arms": arms,
            "scratch": "epochs",
            "depths": self.depth,
            "epochs": epochs // 2 if first.searching else epochs,
            "seed": min(run.seed for run in runs),
            "seeds": len({run.seed for run in runs}),
            "lr": first.lr,
            **self.settings,
            **(self.search["split"] if first.searching else {}),
            "in_process": True,
            "siblings": len(runs),
        }
        return words("sweep", flags)


def learngene_of(arm: str) -> str:
    return arm.partition("@")[2]


def sweep_name(run: Run) -> str:
    return f"{'search-' if run.searching else ''}to-{run.set}-lr{run.lr:g}"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--store", type=Path, required=True, help="folder with the learngenes")
    parser.add_argument("--sets", type=Path, required=True, help="folder with the image sets")
    parser.add_argument("--rows", type=Path, default=ROWS, help="finished runs, one JSON object a line")
    parser.add_argument("--plan", type=Path, default=PLAN, help="another plan, to try something")
    args = parser.parse_args(argv)
    plan, store = Transfer(args.plan.read_text()), args.store.absolute()
    learngenes = {arm: learngene_of(text) for arm, text in plan.arms.items()}
    arms = [arm for arm, name in learngenes.items() if not name or (store / "learngenes" / name).exists()]
    for name in plan.sets:
        while runs := plan.runs(name, arms, read_rows(args.rows)):
            together = [run for run in runs if (run.searching, run.lr) == (runs[0].searching, runs[0].lr)]
            try:
                rows = train(plan, together, store, args.sets.absolute())
            except Interrupted:
                sys.exit("interrupted: the same command goes on from the last checkpoint")
            with args.rows.open("a") as file:
                file.writelines(json.dumps(row) + "\n" for row in rows)


def train(plan: Transfer, runs: Sequence[Run], store: Path, sets: Path) -> list[dict[str, Any]]:
    """Tune the arms of some runs in one sweep; returns their rows."""
    name, origin = sweep_name(runs[0]), provenance()
    run_command(plan.command(runs, store, sets), store / "proof" / f"{name}.json")
    results = pandas.read_parquet(store / "sweeps" / name / "results.parquet")
    results = results.astype(object).where(results.notna(), None).set_index(["arm", "seed"])
    facts = {"machine": machine()["cpu"], **origin}
    return [_row(plan, run, results.loc[(plan.arms[run.arm], run.seed)].to_dict(), facts) for run in runs]


def _row(plan: Transfer, run: Run, result: Mapping[str, Any], facts: Mapping[str, Any]) -> dict[str, Any]:
    measured = {name: result[name] for name in MEASURES}
    return {"key": plan.key(run), **run.__dict__, **measured, **facts}


if __name__ == "__main__":
    main()

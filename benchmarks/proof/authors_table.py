"""python -m benchmarks.proof.authors_table [--rows FILE.jsonl]

Print ours against the authors' SWS program as Markdown, from the rows of `run` and `authors`: the accuracy of every
size, then what all of them cost. It trains nothing.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from benchmarks.proof.authors import ROWS
from benchmarks.proof.authors_seconds import charges
from benchmarks.proof.charges import Charges
from benchmarks.proof.run import read_rows

Rows = Sequence[dict[str, Any]]
AUTHORS = "authors"


class Side(NamedTuple):
    """The models of one program: all sizes of one arm and seed.

    Attributes:
        top1: By depth, in percent.
        flops: Of the student and of the teacher's forward passes.
        seconds: Steps times the milliseconds that a step takes in quiet.
        cpu_seconds: Of the processes as they ran, next to other programs.
    """

    top1: dict[int, float]
    flops: float
    seconds: float
    cpu_seconds: float

    @property
    def mean(self) -> float:
        return fmean(self.top1.values())


def sides(rows: Rows, charges: Charges) -> dict[tuple[str, int], Side]:
    """Both programs' models by arm and seed; searches and unfinished runs are left out."""
    found: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for row in rows:
        if not row["searching"]:
            made = f"{AUTHORS}' program, rate {row['lr']:g}" if row["arm"] == AUTHORS else row["arm"]
            found.setdefault((f"{made}, {row['epochs']} epochs", row["seed"]), []).append(row)
    whole = max(map(len, found.values()))
    return {name: _side(some, charges) for name, some in found.items() if len(some) == whole}


def _side(rows: Rows, charges: Charges) -> Side:
    own = sum(row["flops"] or 0 for row in rows)
    if rows[0]["arm"] == AUTHORS:
        made, ms = rows[0]["learngene"], charges.ms
        steps = {"authors' auxiliary": made["cost"]["steps"]}
        steps |= {f"authors' depth {row['depth']}": row["steps"] for row in rows}
        seconds = sum(count * ms[name] / 1e3 for name, count in steps.items())
        used = sum(row["cpu_seconds"] for row in rows)
    else:
        seconds = charges.learngene(rows[0]) + sum(charges.descendant(row) for row in rows if row["steps"])
        used = rows[0]["sweep"]["cpu_seconds"]
    distilled, made = 0.0, rows[0]["learngene"]
    while made:
        distilled += made["cost"]["flops"] + made["cost"]["teacher_flops"]
        used += made["cpu_seconds"]
        made = made.get("start")
    return Side({row["depth"]: row["top1"] for row in rows}, own + distilled, seconds, used)


def lines(rows: Rows, charges: Charges) -> list[str]:
    """Markdown: a line for each arm and seed; differences and ratios are against the authors' most accurate run."""
    everything = sides(rows, charges)
    theirs: dict[int, Side] = {}
    for (arm, seed), side in everything.items():
        if arm.startswith(AUTHORS) and (seed not in theirs or side.mean > theirs[seed].mean):
            theirs[seed] = side
    depths = sorted({depth for side in theirs.values() for depth in side.top1})
    costs = ["TFLOPs", "times less", "seconds", "times less", "CPU seconds"]
    head = ["arm", "seed", *map(str, depths), "mean", "least difference", *costs]
    found = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for (arm, seed), side in sorted(everything.items(), key=lambda each: (each[0][1], each[0][0])):
        other = theirs[seed]
        columns = [
            arm,
            str(seed),
            *(f"{side.top1[depth]:.1f}" for depth in depths),
            f"{side.mean:.1f}",
            f"{min(side.top1[depth] - other.top1[depth] for depth in depths):+.1f}",
            f"{side.flops / 1e12:.2f}",
            f"{other.flops / side.flops:.1f}",
            f"{side.seconds:.0f}",
            f"{other.seconds / side.seconds:.1f}",
            f"{side.cpu_seconds:.0f}",
        ]
        found.append("| " + " | ".join(columns) + " |")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--rows", type=Path, default=ROWS, help="finished runs, one JSON object a line")
    args = parser.parse_args()
    print("\n".join(lines(read_rows(args.rows), charges())))


if __name__ == "__main__":
    main()

"""python -m benchmarks.proof.report [--rows FILE.jsonl] [--out FILE.md]

Print the fronts that the finished runs make: top-1 by depth and epochs, mean over seeds with its 95 % interval, and the
cost of each. Then say whether size matters there, what searches cost, and what a learngene's accuracies cost.
"""

from __future__ import annotations

import argparse
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev

from benchmarks.proof.against import against_front
from benchmarks.proof.between import ROWS as DEPTH_ROWS
from benchmarks.proof.between import depth_lines
from benchmarks.proof.charges import Charges
from benchmarks.proof.many_sizes import lines as lines_of_many_sizes
from benchmarks.proof.overview import overview
from benchmarks.proof.run import ROWS, read_rows
from benchmarks.proof.table import REFERENCES, Row, cost_together
from benchmarks.proof.transfer import ROWS as TRANSFER_ROWS
from benchmarks.proof.transfer_table import transfer_lines

BOUNDS = """
"Times less" is what a reference pays along its front for a learngene's accuracies, over what the learngene costs with
its teacher's passes. `<`: the reference's shortest schedule is more accurate at a size, so the factor flatters. `>`: no
schedule is as accurate. `~`: both occur. `too far below`: on average more than two points less than that schedule.
"Above": mean over the sizes, with its 95 % interval over seeds. Learning-rate searches are not included. `distilled`
trains each size alone from the learngenes' teacher.
"""
TRANSFER = """\
Top-1 in %, mean over tuning seeds of one learngene. All arms train for the same epochs, each set and arm at its own
rate. The gain is the average over sets, with its 95 % interval over those seeds. It leaves out shares of CIFAR-10, all
of whose training images the learngenes were made from."""
EVERY_DEPTH = (
    "Top-1 in % of models made from a learngene without training, `expand --data`. Distillation sampled depths 2 to 12."
)
SIZES = {"all arms": (2, 3, 4, 6, 8, 12), "sizes of the SWS paper": (6, 8, 10, 12, 15)}
SIZE_MATTERS = 3.0  # points from the smallest to the largest size
STUDENT = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776}  # two-sided 95 % quantiles by degrees of freedom

Cell = tuple[int, int]  # depth, epochs


def interval(values: Sequence[float]) -> float:
    """Half the 95 % interval of a mean over seeds; not a number for one seed."""
    if len(values) < 2:
        return math.nan
    return STUDENT[len(values) - 1] * stdev(values) / math.sqrt(len(values))


def front(rows: Iterable[Row], data: str, arm: str) -> dict[Cell, list[Row]]:
    """Finished rows of an arm by depth and epochs, searches left out."""
    cells: dict[Cell, list[Row]] = defaultdict(list)
    for row in rows:
        if (row["data"], row["arm"], row["searching"], row["status"]) == (data, arm, False, "finished"):
            cells[row["depth"], row["epochs"]].append(row)
    return dict(sorted(cells.items()))


def front_table(cells: Mapping[Cell, Sequence[Row]]) -> list[str]:
    """A Markdown table of a front."""
    lines = [
        "| depth | epochs | seeds | top-1 % | from doubling | lr | TFLOPs | of that teacher | CPU s |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for (depth, epochs), rows in cells.items():
        shorter = cells.get((depth, epochs // 2), ())
        teacher = mean(row["teacher_flops"] / row["sweep"]["models"] for row in rows) / 1e12
        own = mean(row["flops"] for row in rows) / 1e12
        columns = (
            depth,
            epochs,
            len(rows),
            _score([row["top1"] for row in rows]),
            _score(_paired(shorter, rows), sign="+"),
            "/".join(f"{lr:g}" for lr in sorted({row["lr"] for row in rows})),
            f"{own + teacher:.1f}",
            f"{teacher:.1f}",
            f"{mean(row['cpu_seconds'] for row in rows):,.0f}",
        )
        lines.append("| " + " | ".join(map(str, columns)) + " |")
    return lines


def size_effect(cells: Mapping[Cell, Sequence[Row]]) -> str:
    """Say how much the largest size gains over the smallest at the longest schedule that has both."""
    depths = sorted({depth for depth, _ in cells})
    both = [e for depth, e in cells if depth == depths[0] and (depths[-1], e) in cells]
    if len(depths) < 2 or not both:
        return "No schedule has two sizes yet."
    gains = _paired(cells[depths[0], max(both)], cells[depths[-1], max(both)])
    if not gains:
        return "No seed has two sizes yet."
    verdict = "size matters" if mean(gains) >= SIZE_MATTERS else "too little to tell sizes apart"
    return (
        f"Depth {depths[-1]} is {_score(gains, sign='+')} points from depth {depths[0]} after {max(both)} epochs "
        f"(needed: {SIZE_MATTERS:g}): {verdict}."
    )


def search_lines(rows: Iterable[Row], data: str, arm: str) -> list[str]:
    """A line for each search: its cost, and top-1 on the held-out part by depth and learning rate."""
    searches: dict[int, list[Row]] = defaultdict(list)
    for row in rows:
        if (row["data"], row["arm"], row["searching"]) == (data, arm, True):
            searches[row["epochs"]].append(row)
    lines = []
    for epochs, tried in sorted(searches.items()):
        flops, teacher, seconds = cost_together(tried)
        by_depth = []
        for depth in sorted({row["depth"] for row in tried}):
            rates = sorted((row for row in tried if row["depth"] == depth), key=lambda row: float(row["lr"]))
            by_depth.append(f"depth {depth}: " + ", ".join(f"{row['lr']:g}: {_top1(row)}" for row in rates))
        lines.append(
            f"- {epochs} epochs, {(flops + teacher) / 1e12:.1f} TFLOPs, {seconds:,.0f} CPU s; {'; '.join(by_depth)}"
        )
    return lines


def report(rows: Sequence[Row], charges: Charges | None = None) -> str:
    """All fronts, and the learngenes against them, as Markdown."""
    lines = []
    for data in dict.fromkeys(row["data"] for row in rows):
        for said, depths in SIZES.items():
            if arms := overview(rows, data, depths, charges):
                lines += [f"## {data}, {said}", "", *arms, ""]
    for data, arm in dict.fromkeys((row["data"], row["arm"]) for row in rows):
        lines += [f"## {data}, {arm}", ""]
        shared = any(row.get("learngene") for row in rows if row["arm"] == arm)
        if shared:
            for reference in REFERENCES:
                those = [row for row in rows if row["arm"] in (arm, reference)]
                lines += against_front(those, data, charges, reference)
        elif cells := front(rows, data, arm):
            lines += [*front_table(cells), "", size_effect(cells), ""]
        if searches := search_lines(rows, data, arm):
            lines += ["Learning-rate searches, top-1 % on held-out training images:", "", *searches, ""]
    hours = (sum(row["cpu_seconds"] for row in rows) + sum(made_once(rows).values())) / 3600
    return "\n".join([*lines, f"{len(rows)} models, {hours:.2f} core-hours (CPU seconds of their processes)."])


def made_once(rows: Iterable[Row]) -> dict[str, float]:
    """CPU seconds of what many rows share: learngenes and teachers, by the hash of their weights."""
    shared = (row.get(kind) for row in rows for kind in ("learngene", "teacher"))
    return {made["sha256"]: made["cpu_seconds"] for made in shared if made}


def _paired(shorter: Sequence[Row], longer: Sequence[Row]) -> list[float]:
    """Differences in top-1 of the seeds that both have."""
    before = {row["seed"]: row["top1"] for row in shorter}
    return [row["top1"] - before[row["seed"]] for row in longer if row["seed"] in before]


def _score(values: Sequence[float], sign: str = "") -> str:
    if not values:
        return ""
    half = interval(values)
    return f"{mean(values):{sign}.2f}" + ("" if math.isnan(half) else f" ± {half:.2f}")


def _top1(row: Row) -> str:
    return "diverged" if row["top1"] is None else f"{row['top1']:.2f}"


def page(rows: Sequence[Row], charges: Charges | None, moved: Sequence[Row] = (), expanded: Sequence[Row] = ()) -> str:
    """The report as a page; `results.md` of the committed rows.

    Args:
        moved: Rows of the transfer.
        expanded: Rows of `benchmarks.proof.between`.
    """
    made = "Made by `python -m benchmarks.proof.report`; see [the design](README.md)."
    table = transfer_lines(moved)
    transfer = ["## Other image sets, six layers", "", TRANSFER, "", *table, ""] if table else []
    untuned = ["## Every depth, untuned", "", EVERY_DEPTH, "", *depth_lines(expanded), ""] if expanded else []
    many = ["## cifar10, how many sizes pay", "", *lines_of_many_sizes(list(rows), charges), ""]
    return "\n".join([f"# Results\n\n{made}\n{BOUNDS}\n{report(rows, charges)}\n", *many, *untuned, *transfer])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--rows", type=Path, default=ROWS, help="finished runs, one JSON object a line")
    parser.add_argument("--out", type=Path, help="file to write, as a page; default: print the report")
    args = parser.parse_args()
    rows, charges = read_rows(args.rows), Charges.read()
    if args.out:
        args.out.write_text(page(rows, charges, read_rows(TRANSFER_ROWS), read_rows(DEPTH_ROWS)))
    else:
        print(report(rows, charges) if rows else "no finished runs yet")


if __name__ == "__main__":
    main()

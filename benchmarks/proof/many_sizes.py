"""python -m benchmarks.proof.many_sizes [--rows FILE.jsonl] [--out FILE.svg]

Draw and print how many times less learngenes cost than scratch for the same accuracies, by the number of sizes. These
share what is made once, and each costs what a size of the proof costs on average. It trains nothing.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from benchmarks.figures import OUT
from benchmarks.proof.against import Saving, saving
from benchmarks.proof.charges import Charges
from benchmarks.proof.figure import DATA, Series
from benchmarks.proof.run import ROWS, read_rows
from benchmarks.proof.table import REFERENCES, table

EPOCHS = 20  # of the distillation
SIZES = (1, 2, 5, 10, 20, 50, 100)
SERIES = (
    Series("any-size-untied-taught", "any-size untied, untuned", "#56B4E9", untuned=True),
    Series("any-size-untied-taught", "the same, 2 epochs of tuning", "#009E73"),
    Series("any-size-tuned", "any-size, 10", "#0072B2"),
    Series("sws-tuned", "sws, 10", "#CC79A7"),
    Series("ligo-tuned", "ligo, 10", "#E69F00"),
    Series("truncated-tuned", "the largest truncated, 10", "#D55E00"),
)


def savings(rows: list[dict[str, Any]], unit: str, charges: Charges | None = None) -> list[tuple[Series, Saving]]:
    """What each series saves against scratch, by `flops` or `seconds`; series without rows are left out."""
    tables = {untuned: table(rows, DATA, charges, untuned=untuned) for untuned in (False, True)}
    scratch, found = REFERENCES[0], []
    for series in SERIES:
        arm = tables[series.untuned].query("trained == @series.arm and epochs == @EPOCHS")
        if len(arm) and (saved := saving(tables[False], arm, unit, scratch)):
            found.append((series, saved))
    return found


def figure(found: Sequence[tuple[Series, Saving]]) -> Figure:
    """Times less FLOPs by the number of sizes, on log axes; dashed with the training of the teacher."""
    whole = Figure(figsize=(6.5, 4.2), layout="constrained")
    axes = whole.subplots()
    for series, saved in found:
        for teacher, line in ((False, "-"), (True, "--")):
            times = [saved.times(sizes, teacher=teacher) for sizes in SIZES]
            axes.plot(SIZES, times, line, color=series.colour, label=None if teacher else series.label)
    axes.axhline(1, color="black", lw=0.8)
    axes.set(
        xlabel="number of sizes", ylabel="times fewer FLOPs than scratch (dashed: with the teacher)",
        xscale="log", yscale="log", xticks=SIZES, yticks=(0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50),
    )  # fmt: skip
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:g}")
        axis.set_minor_locator(NullLocator())
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, frameon=False)
    return whole


def lines(rows: list[dict[str, Any]], charges: Charges | None) -> list[str]:
    """A Markdown table: from how many sizes on a series costs less, and how many times less ten and a hundred cost."""
    head = "| | unit | costs less from | 10 sizes | 100 sizes | with the teacher's training: from | 10 | 100 |"
    found = [head, "|---" * 8 + "|"]
    for unit in ("flops", "seconds"):
        for series, saved in savings(rows, unit, charges):
            columns = [series.label, {"flops": "FLOPs"}.get(unit, unit)]
            for teacher in (False, True):
                columns.append(f"{saved.break_even(teacher=teacher):.1f}")
                columns += [f"{saved.bound}{saved.times(sizes, teacher=teacher):.1f}" for sizes in (10, 100)]
            found.append("| " + " | ".join(columns) + " |")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--rows", type=Path, default=ROWS, help="finished runs, one JSON object a line")
    parser.add_argument("--out", type=Path, default=OUT / "many_sizes.svg", help="file to write")
    args = parser.parse_args()
    rows = read_rows(args.rows)
    with matplotlib.rc_context({"svg.hashsalt": "ray_learngene", "font.size": 9}):
        figure(savings(rows, "flops")).savefig(args.out, metadata={"Date": None})
    print("\n".join([*lines(rows, Charges.read()), "", str(args.out)]))


if __name__ == "__main__":
    main()

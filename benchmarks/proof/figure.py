"""python -m benchmarks.proof.figure [--rows FILE.jsonl] [--out FILE.svg]

Draw the proof: accuracy by size, and mean accuracy against what all sizes cost together. It trains nothing.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from benchmarks.figures import OUT
from benchmarks.proof.run import ROWS, read_rows
from benchmarks.proof.table import REFERENCES, table
from ray_learngene.compare.summary import cost

DATA = "cifar10"
COLOURS = dict(  # Okabe and Ito's
    zip(
        ("scratch", "distilled", "any-size", "any-size-steady", "any-size-views", "sws", "ligo"),
        ("#000000", "#999999", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00"),
        strict=True,
    )
)
LINES = ("-", "--", "-.", ":")  # of the schedules, the shortest first


def figure(rows: list[dict[str, Any]]) -> Figure:
    """Left: top-1 by depth. Right: mean top-1 of all sizes against their total training FLOPs.

    Learngenes are drawn untuned, as they are distilled. Sizes that not every arm has are left out on the right.
    """
    everything = table(rows, DATA, untuned=True)
    common = set.intersection(*(set(one["depth"]) for _, one in everything.groupby("arm")))
    drawn = Figure(figsize=(10, 4.8), layout="constrained")
    by_size, by_cost = drawn.subplots(1, 2)
    schedules = sorted(set(everything["epochs"]))
    for (arm, epochs), some in everything.groupby(["trained", "epochs"], sort=False):
        if arm not in COLOURS:
            continue
        label, line = f"{arm}, {epochs} epochs", LINES[schedules.index(epochs)]
        style: dict[str, Any] = {"color": COLOURS[arm], "marker": "s" if arm in REFERENCES else "o", "ms": 5}
        scores = some.groupby("depth")["top1"].mean()
        by_size.plot(scores.index, scores, label=label, ls=line, **style)
        shared = some[some["depth"].isin(common)]
        for ancestry, fill in ((False, "full"), (True, "none")):
            if ancestry and arm == "scratch":
                continue
            total = cost(shared, "flops", ancestry=ancestry).total(len(common), search=False) / 1e12
            by_cost.plot(total, shared["top1"].mean(), fillstyle=fill, **{**style, "ls": ""})
        by_cost.annotate(label, (total, shared["top1"].mean()), (7, -3), textcoords="offset points", fontsize=8)
    by_size.set(xlabel="layers", ylabel="top-1 on 10,000 test images, %", xticks=sorted(set(everything["depth"])))
    drawn.legend(*by_size.get_legend_handles_labels(), fontsize=8, frameon=False, loc="outside lower center", ncols=4)
    by_cost.set(
        xlabel=f"{len(common)} sizes together, TFLOPs (hollow: with the teacher's training)",
        ylabel="mean top-1, %",
        xscale="log",
    )
    by_cost.margins(x=0.15, y=0.1)
    by_cost.set_xlim(right=3 * by_cost.get_xlim()[1])  # room for labels
    by_cost.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    by_cost.xaxis.set_major_formatter("{x:g}")
    by_cost.xaxis.set_minor_locator(NullLocator())
    for axes in (by_size, by_cost):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    return drawn


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--rows", type=Path, default=ROWS, help="finished runs, one JSON object a line")
    parser.add_argument("--out", type=Path, default=OUT / "proof.svg", help="file to write")
    args = parser.parse_args()
    with matplotlib.rc_context({"svg.hashsalt": "ray_learngene", "font.size": 9}):
        figure(read_rows(args.rows)).savefig(args.out, metadata={"Date": None})
    print(args.out)


if __name__ == "__main__":
    main()

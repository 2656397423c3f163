"""python -m benchmarks.proof.figure [--rows FILE.jsonl] [--out FOLDER]

Draw the proof: accuracy by size, and mean accuracy against what ten sizes cost. Two files: `proof.svg` has few series,
`proof_all.svg` has all. It trains nothing.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from benchmarks.figures import OUT
from benchmarks.proof.against import MANY
from benchmarks.proof.run import ROWS, read_rows
from benchmarks.proof.table import REFERENCES, table
from ray_learngene.compare.summary import cost

DATA = "cifar10"


class Series(NamedTuple):
    """What is drawn of an arm: all its schedules, before or after the tuning of its descendants."""

    arm: str
    label: str
    colour: str  # of Okabe and Ito, and an olive of Tol
    untuned: bool = False


SERIES = (
    Series("scratch", "scratch", "#000000"),
    Series("distilled", "each size distilled", "#999999"),
    Series("any-size-views", "any-size, untuned", "#999933", untuned=True),
    Series("any-size-untied-taught", "untied for 20, untuned", "#56B4E9", untuned=True),
    Series("any-size-untied-taught-40", "untied for 40, 2 epochs of tuning", "#009E73"),
    Series("any-size-tuned", "any-size, 10 epochs of tuning", "#0072B2"),
    Series("sws-tuned", "sws, 10", "#CC79A7"),
    Series("ligo-tuned", "ligo, 10", "#E69F00"),
    Series("truncated-tuned", "the largest truncated, 10", "#D55E00"),
)
FEW = {"scratch", "any-size-views", "any-size-untied-taught", "any-size-untied-taught-40"}  # arms of the first figure
LINES = ("-", "--", "-.", ":")  # of the schedules, the shortest first


def figure(rows: list[dict[str, Any]], *, few: bool = False) -> Figure:
    """Left: top-1 by depth. Right: mean top-1 of all sizes against the training FLOPs of ten, each at their mean cost.

    Sizes that not every series has are left out on the right.

    Args:
        few: Draw the main series only, and name each of their points.
    """
    tables = {untuned: table(rows, DATA, untuned=untuned) for untuned in (False, True)}
    drawn = [
        (series, epochs, some)
        for series in SERIES
        if series.arm in FEW or not few
        for epochs, some in tables[series.untuned].query("trained == @series.arm").groupby("epochs")
    ]
    # an arm that was shortened to try something is no schedule to compare
    schedules = sorted({epochs for series, epochs, _ in drawn if series.arm in REFERENCES})
    drawn = [(series, epochs, some) for series, epochs, some in drawn if epochs in schedules]
    common = set.intersection(*(set(some["depth"]) for _, _, some in drawn))
    whole = Figure(figsize=(10, 4.6 if few else 5.2), layout="constrained")
    by_size, by_cost = whole.subplots(1, 2)
    for series, epochs, some in drawn:
        label = f"{series.label} ({epochs} epochs)" if series.arm in REFERENCES else series.label
        marker = "s" if series.arm in REFERENCES else "o"
        style: dict[str, Any] = {"color": series.colour, "marker": marker, "ms": 5}
        scores = some.groupby("depth")["top1"].mean()
        by_size.plot(scores.index, scores, label=label, ls=LINES[schedules.index(epochs)], **style)
        shared = some[some["depth"].isin(common)]
        for ancestry, fill in ((False, "full"), (True, "none")):
            if ancestry and series.arm == "scratch":
                continue
            total = cost(shared, "flops", ancestry=ancestry).total(MANY, search=False) / 1e12
            by_cost.plot(total, shared["top1"].mean(), fillstyle=fill, **{**style, "ls": ""})
            if few and not ancestry:
                place = {"xytext": (0, 8), "textcoords": "offset points", "ha": "center", "fontsize": 8}
                by_cost.annotate(label, (total, shared["top1"].mean()), color=series.colour, **place)
    by_size.set(xlabel="layers", ylabel="top-1 on 10,000 test images, %", xticks=sorted(set(tables[False]["depth"])))
    whole.legend(*by_size.get_legend_handles_labels(), fontsize=8, frameon=False, loc="outside lower center", ncols=4)
    by_cost.set(
        xlabel=f"TFLOPs of {MANY} sizes, from those of {len(common)} (hollow: with the teacher's training)",
        ylabel=f"mean top-1 of {len(common)} sizes, %",
        xscale="log",
    )
    by_cost.margins(x=0.2 if few else 0.1, y=0.1)
    by_cost.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    by_cost.xaxis.set_major_formatter("{x:g}")
    by_cost.xaxis.set_minor_locator(NullLocator())
    for axes in (by_size, by_cost):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    return whole


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--rows", type=Path, default=ROWS, help="finished runs, one JSON object a line")
    parser.add_argument("--out", type=Path, default=OUT, help="folder to write to")
    args = parser.parse_args()
    for name, few in (("proof.svg", True), ("proof_all.svg", False)):
        with matplotlib.rc_context({"svg.hashsalt": "ray_learngene", "font.size": 9}):
            figure(read_rows(args.rows), few=few).savefig(args.out / name, metadata={"Date": None})
        print(args.out / name)


if __name__ == "__main__":
    main()

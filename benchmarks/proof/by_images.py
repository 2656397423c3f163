"""python -m benchmarks.proof.by_images [--rows FILE.jsonl ...] [--out FILE.svg]

Draw and print accuracy and cost by the number of training images: untied layers against 20 epochs of scratch, each
with the images and the teacher of its share (images.yaml). It trains nothing.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from benchmarks.figures import OUT
from benchmarks.proof.against import MANY, Saving, saving
from benchmarks.proof.figure import DATA
from benchmarks.proof.run import ROWS, read_rows
from benchmarks.proof.table import table

SHARES = Path(__file__).with_name("images.jsonl")
IMAGES = 50_000  # of CIFAR-10
SCRATCH, OURS, EPOCHS = "scratch", "any-size-untied-taught", 20
COLOURS = {SCRATCH: "#000000", OURS: "#56B4E9"}


@dataclass(frozen=True)
class Point:
    """One number of images.

    Attributes:
        teacher: Top-1 of the teacher.
        top1: Mean top-1 of all sizes by arm.
        above: Sizes at which ours is at least as accurate as scratch, of `sizes`.
        saved: In FLOPs.
    """

    images: int
    teacher: float
    top1: dict[str, float]
    above: int
    sizes: int
    saved: Saving


def points(rows: Sequence[dict[str, Any]]) -> list[Point]:
    """Return the points of one seed, the fewest images first; a share without both arms is left out."""
    rows = [row for row in rows if row["seed"] == 0 and row["epochs"] == EPOCHS and row["arm"] in (SCRATCH, OURS)]
    found = []
    for share in sorted({row.get("share", 1) for row in rows}):
        some = [row for row in rows if row.get("share", 1) == share]
        arms = dict(list(table(some, DATA, untuned=True).groupby("trained")))
        if arms.keys() != {SCRATCH, OURS}:
            continue
        by_depth = {name: one.set_index("depth")["top1"] for name, one in arms.items()}
        higher = by_depth[OURS] >= by_depth[SCRATCH]
        saved = saving(table(some, DATA), arms[OURS], "flops", SCRATCH)
        assert saved is not None, "both arms have the same sizes"
        teacher = next(row["teacher"] for row in some if row["teacher"])["metrics"]["top1"]
        top1 = {name: float(one.mean()) for name, one in by_depth.items()}
        found.append(Point(round(share * IMAGES), teacher, top1, int(higher.sum()), len(higher), saved))
    return found


def lines(found: Sequence[Point]) -> list[str]:
    """A Markdown table, a row for each number of images."""
    head = (
        "| images | teacher | scratch, 20 epochs | untied, untuned | at least as accurate at | "
        f"{MANY} sizes: TFLOPs from scratch | times fewer | with the teacher's training |"
    )
    rows = [
        f"| {one.images:,} | {one.teacher:.1f} | {one.top1[SCRATCH]:.1f} | {one.top1[OURS]:.1f} "
        f"| {one.above} of {one.sizes} sizes | {MANY * one.saved.pays / 1e12:.1f} "
        f"| {one.saved.bound}{one.saved.times(MANY):.1f} | {one.saved.bound}{one.saved.times(MANY, teacher=True):.1f} |"
        for one in found
    ]
    return [head, "|---" * 8 + "|", *rows]


def figure(found: Sequence[Point]) -> Figure:
    """Left: mean top-1 by images. Right: training FLOPs of ten sizes by images, dashed with the teacher's training."""
    whole = Figure(figsize=(8, 3.6), layout="constrained")
    left, right = whole.subplots(1, 2)
    images = [one.images for one in found]
    for arm, label in ((SCRATCH, "scratch, 20 epochs each"), (OURS, "untied, untuned")):
        left.plot(images, [one.top1[arm] for one in found], "o-", color=COLOURS[arm], label=label)
    left.plot(images, [one.teacher for one in found], "o:", color="#999999", label="teacher")
    right.plot(images, [MANY * one.saved.pays / 1e12 for one in found], "o-", color=COLOURS[SCRATCH])
    for line, spent in (("o-", [one.saved.spent for one in found]), ("o--", [one.saved.whole for one in found])):
        costs = [one.total(MANY, search=False) / 1e12 for one in spent]
        right.plot(images, costs, line, color=COLOURS[OURS])
    left.set(xlabel="training images", ylabel="top-1 in %, mean of six sizes")
    right.set(xlabel="training images", ylabel="TFLOPs of ten sizes (dashed: with the teacher)", yscale="log")
    right.yaxis.set_major_formatter("{x:g}")
    for axes in (left, right):
        axes.set(xscale="log", xticks=images, xticklabels=[f"{one:,}" for one in images])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    left.legend(fontsize=8, frameon=False)
    return whole


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--rows", type=Path, nargs="+", default=[ROWS, SHARES], help="finished runs, an object a line")
    parser.add_argument("--out", type=Path, default=OUT / "by_images.svg", help="file to write")
    args = parser.parse_args()
    found = points([row for path in args.rows for row in read_rows(path)])
    with matplotlib.rc_context({"svg.hashsalt": "ray_learngene", "font.size": 9}):
        figure(found).savefig(args.out, metadata={"Date": None})
    print("\n".join([*lines(found), "", str(args.out)]))


if __name__ == "__main__":
    main()

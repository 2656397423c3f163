"""python -m benchmarks.figures

Draws the two figures of the README into `docs/figures`: accuracy against size, from the committed tables of
`benchmarks/methods`, and the way from an ancestry model to its descendants. It trains nothing.
"""

from __future__ import annotations

from typing import Any

import matplotlib
import pandas
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle

from benchmarks.method_pages import ROOT, folder
from ray_learngene.compare.report import RESULTS

OUT = ROOT / "docs" / "figures"
# The Okabe-Ito palette, with a marker each: readable without colour vision.
ARMS = {
    "any-size": ("#0072B2", "o"),
    "ligo": ("#009E73", "s"),
    "wave": ("#CC79A7", "^"),
    "sws": ("#D55E00", "D"),
    "pretrained": ("#666666", "v"),
    "scratch": ("#000000", "X"),
}
LABELS = {"pretrained": "each size distilled"}
PANELS = (
    ("digits", "the digits, 1,438 training images", (84, 100.3)),
    ("cifar10", "a tenth of CIFAR-10, 5,000 training images", (39, 51.5)),
)
CAVEAT = (
    "Mean of three seeds; bars: lowest and highest; axes are cut. Scratch is undertrained: on the digits 120 epochs "
    "reach 99 %, the figure stops at 30.\nEpochs of distillation, digits / CIFAR-10: any-size 55 / 22, the others "
    "30 / 12. On CIFAR-10 the teacher saw ten times as many labels as scratch."
)
STAGES = ("#56B4E9", "#E69F00", "#009E73")


def main() -> None:
    # glyphs as paths look the same everywhere; a fixed salt and no date give the same file in every run
    with matplotlib.rc_context({"svg.hashsalt": "ray_learngene", "font.size": 9}):
        for name, figure in (("accuracy", accuracy()), ("learngene", drawing())):
            figure.savefig(OUT / f"{name}.svg", metadata={"Date": None})
            print(OUT / f"{name}.svg")


def accuracy() -> Figure:
    """Top-1 after training against parameters, the main arms of two benchmarks."""
    figure = Figure(figsize=(10, 4.9), layout="constrained")
    for axes, (name, title, limits) in zip(figure.subplots(1, len(PANELS)), PANELS, strict=True):
        _panel(axes, pandas.read_parquet(folder(name) / RESULTS), limits)
        axes.set_title(title, fontsize=10)
    figure.supxlabel(CAVEAT, fontsize=8, x=0.02, ha="left")
    return figure


def _panel(axes: Any, table: pandas.DataFrame, limits: tuple[float, float]) -> None:
    finished = table[table["status"] == "finished"]
    scores = finished.groupby(["arm", "params"])["top1"].agg(["mean", "min", "max"])
    ends = {}
    for arm, (colour, marker) in ARMS.items():
        if arm not in scores.index:
            continue
        line = scores.loc[arm]
        axes.plot(line.index, line["mean"], color=colour, marker=marker, lw=1.8, ms=5)
        axes.vlines(line.index, line["min"], line["max"], color=colour, lw=0.8, alpha=0.6)
        ends[arm] = line["mean"].iloc[-1]
    last = finished["params"].max()
    for arm, place in _apart(ends, (limits[1] - limits[0]) / 26).items():
        style = {"xytext": (8, 0), "textcoords": "offset points", "va": "center", "fontsize": 8, "weight": "bold"}
        axes.annotate(LABELS.get(arm, arm), (last, place), color=ARMS[arm][0], **style)
    axes.set(xscale="log", ylim=limits, ylabel="top-1 at the end, %", xlabel="parameters of the descendant")
    sizes = sorted(finished["params"].unique())
    axes.set_xticks(sizes, [f"{size / 1e3:.0f} k" for size in sizes])
    axes.minorticks_off()
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def _apart(heights: dict[str, float], gap: float) -> dict[str, float]:
    """Heights of labels, in the same order, pushed apart in pairs until none covers another."""
    names = sorted(heights, key=heights.__getitem__)
    placed = [heights[name] for name in names]
    for _ in range(500):
        for lower in range(len(placed) - 1):
            short = gap - (placed[lower + 1] - placed[lower])
            if short > 0:
                placed[lower], placed[lower + 1] = placed[lower] - short / 2, placed[lower + 1] + short / 2
    return dict(zip(names, placed, strict=True))


def drawing() -> Figure:
    """Ancestry model, auxiliary model, learngene and descendants, with three stages."""
    figure = Figure(figsize=(10, 3.9))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, 100), ylim=(0, 39))
    axes.axis("off")

    _box(axes, 2, 11, 15, 22)
    _text(axes, 9.5, 22, "a large, trained\nvision model,\nfrozen", size=9)
    _title(axes, 9.5, "ancestry model")

    _layers(axes, 28, 11, "AABBCC", 3.4)
    _title(axes, 33.5, "auxiliary model")
    _text(axes, 33.5, 7.2, "6 layers, 3 blocks:\none colour, one set of weights", size=8)

    _layers(axes, 53.5, 15.5, "ABC", 3.4)
    _title(axes, 59, "learngene")
    _text(axes, 59, 7.2, "what is kept: one block\nper stage, stored once", size=8)

    for x, layers in ((77, "ABC"), (84.5, "AABBC"), (92, "AAABBBCCC")):
        _layers(axes, x, 11, layers, 2.2, width=6)
        _text(axes, x + 3, 9.4, f"{len(layers)} layers", size=8)
    _title(axes, 87.5, "descendants")
    _text(axes, 87.5, 5.8, "plain timm models, each with weights\nof its own, trained for a few epochs", size=8)

    _arrow(axes, 17.6, 27.2, 22, "teaches", "learngene distill")
    _arrow(axes, 40, 52.5, 22, "keep the blocks", "learngene distill")
    _arrow(axes, 65.5, 76, 22, "copy, train", "learngene sweep")
    _text(
        axes,
        50,
        1.6,
        "Colours are stages: layers in a row that share one set of weights. "
        "This is the method sws; any-size shares blocks too.",
        size=8,
        colour="#555555",
    )
    return figure


def _box(axes: Any, x: float, y: float, width: float, height: float) -> None:
    axes.add_patch(
        FancyBboxPatch((x, y), width, height, boxstyle="round,pad=0,rounding_size=0.8", fc="#eeeeee", ec="#333333")
    )


def _layers(axes: Any, x: float, y: float, stages: str, height: float, *, width: float = 11) -> None:
    """Blocks from the bottom up, a colour for each stage."""
    for layer, stage in enumerate(stages):
        colour = STAGES["ABC".index(stage)]
        axes.add_patch(Rectangle((x, y + layer * height), width, height * 0.86, fc=colour, ec="#333333", lw=0.8))
        _text(axes, x + width / 2, y + (layer + 0.43) * height, f"block {stage}" if width > 8 else stage, size=8)


def _arrow(axes: Any, start: float, end: float, y: float, above: str, below: str) -> None:
    axes.annotate("", (end, y), (start, y), arrowprops={"arrowstyle": "-|>", "lw": 1.4, "color": "#333333"})
    middle = (start + end) / 2 - 0.3
    _text(axes, middle, y + 1.7, above, size=8)
    axes.text(
        middle,
        y - 1.9,
        below.replace(" ", "\n"),
        ha="center",
        va="center",
        fontsize=7.5,
        family="monospace",
        linespacing=1.1,
    )


def _title(axes: Any, x: float, text: str) -> None:
    axes.text(x, 36, text, ha="center", va="center", fontsize=11, weight="bold")


def _text(axes: Any, x: float, y: float, text: str, *, size: float, colour: str = "#111111") -> None:
    axes.text(x, y, text, ha="center", va="center", fontsize=size, color=colour)


if __name__ == "__main__":
    main()

"""The benchmark's Parquet table, Markdown page and plots."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas
import pyarrow
from jinja2 import Environment, PackageLoader, StrictUndefined

from ray_learngene.compare.plan import Row, learning_rates, sizes
from ray_learngene.compare.summary import MEASURES, Cost, cost, summarise
from ray_learngene.config import BenchConfig
from ray_learngene.models.budgets import format_quantity
from ray_learngene.provenance import publishable
from ray_learngene.store.store import Store

log = logging.getLogger(__name__)

RESULTS, PAGE, PLOTS = "results.parquet", "results.md", ("accuracy.svg", "break-even.svg")


def write_report(config: BenchConfig, store: Store, table: pandas.DataFrame, arms: Sequence[Row], folder: Path) -> None:
    """Write the table to the store; write the table, the page and the plots to a folder."""
    rows = pyarrow.Table.from_pandas(table, preserve_index=False)
    store.write_table(f"benches/{config.name}/{RESULTS}", rows)
    table.to_parquet(folder / RESULTS, index=False)
    (folder / PAGE).write_text(page(config, table, arms))
    names = [row.name for row in arms]
    for figure, name in zip((accuracy_plot(table, names), break_even_plot(table, names)), PLOTS, strict=True):
        figure.savefig(folder / name)
    log.info(f"benchmark {config.name}: {len(table)} descendants; see {folder / PAGE}")


def page(config: BenchConfig, table: pandas.DataFrame, arms: Sequence[Row]) -> str:
    """Render the Markdown page: settings and hardware, the table of arms, and a table of sizes for each measure."""
    environment = Environment(
        loader=PackageLoader("ray_learngene"), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["quantity"] = lambda value: format_quantity("params", value)
    environment.filters["score"] = lambda pair: f"{pair[0]:.1f} ± {pair[1]:.1f}"
    environment.filters["rate"] = _rate
    environment.filters["flops"] = lambda flops: _known(flops, f"{flops:.2e}")
    environment.filters["times"] = lambda ratio: "-" if ratio is None else _known(ratio, f"{ratio:.1f}")
    environment.filters["count"] = _count
    specs = [spec for spec in sizes(config, 1) if len(_at(table, spec.width, spec.depth))]
    return environment.get_template("bench.md").render(
        config=publishable(config.model_dump()),
        rows=summarise(table, [row.name for row in arms], config.reference),
        measures=MEASURES,
        specs=specs,
        several_widths=len({spec.width for spec in specs}) > 1,
        cell=lambda arm, measure, spec: _cell(table, arm, measure, spec.width, spec.depth),
        grids={row.name: learning_rates(config, row) for row in arms},
        refused={row.name: next(iter(row.refused.values())) for row in arms if row.refused},
        devices=sorted(table["latency_device"].unique()),
        torch=sorted(table["torch"].unique()),
        revisions=sorted(table["revision"].unique()),
        distilled={row.name: next((one.epochs for one in row.distillations.values() if one), None) for row in arms},
        epochs=table.groupby("arm")["epochs"].first().to_dict(),
    )


def _known(value: float, text: str) -> str:
    return "unknown" if math.isnan(value) else text


def _rate(lr: float | None, grid: Sequence[float]) -> str:
    """Format a learning rate, with a star if it is the smallest or largest of the searched grid."""
    if lr is None or math.isnan(lr):
        return "-"
    return f"{lr:.1e}{' *' if len(grid) > 1 and lr in (min(grid), max(grid)) else ''}"


def _count(descendants: float | None) -> str:
    """Format a break-even; infinity is `never`, NaN is `unknown`, None is `-`."""
    if descendants is None:
        return "-"
    return "never" if math.isinf(descendants) else _known(descendants, f"{descendants:.0f}")


def _at(table: pandas.DataFrame, width: int, depth: int) -> pandas.DataFrame:
    return table[(table["width"] == width) & (table["depth"] == depth)]


def _cell(table: pandas.DataFrame, arm: str, measure: str, width: int, depth: int) -> str:
    values = _at(table[table["arm"] == arm], width, depth)[measure]
    if not len(values):
        return "-"
    return f"{values.mean():.1f} ± {values.std(ddof=1):.1f}" if len(values) > 1 else f"{values.mean():.1f}"


def _style(index: int) -> dict[str, Any]:
    return {"color": f"C{index % 10}", "linestyle": ("-", "--", ":")[index // 10 % 3]}


def accuracy_plot(table: pandas.DataFrame, names: Sequence[str]) -> Any:
    """Plot accuracy against parameters before tuning, after one epoch and at the end; a line per arm and width."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4.6), layout="constrained")
    panels = figure.subplots(1, len(MEASURES), sharey=True)
    for axes, (measure, title) in zip(panels, MEASURES.items(), strict=True):
        for index, name in enumerate(names):
            label: str | None = name
            for _, some in table[table["arm"] == name].groupby("width"):
                groups = some.groupby("params")[measure]
                mean, spread = groups.mean(), groups.std(ddof=1).fillna(0)
                points = (mean.index / 1e6, mean)
                axes.errorbar(*points, yerr=spread, marker="o", markersize=3, label=label, **_style(index))
                label = None
        if table["width"].nunique() > 1:
            axes.set_xscale("log")
        axes.set_title(title)
        axes.set_xlabel("parameters of the descendant (millions)")
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("top-1 on the validation split (%)")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center", fontsize="small")
    return figure


def break_even_plot(table: pandas.DataFrame, names: Sequence[str], most: int = 10) -> Any:
    """Plot cost against the number of descendants: training FLOPs, seconds, and FLOPs with ancestry and search."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4.6), layout="constrained")
    panels = figure.subplots(1, 3)
    counts = range(1, most + 1)
    titles = {
        "training FLOPs": ("flops", False),
        "training seconds": ("seconds", False),
        "FLOPs with ancestry and search": ("flops", True),
    }
    for axes, (title, (unit, everything)) in zip(panels, titles.items(), strict=True):
        for index, name in enumerate(names):
            arm = table[table["arm"] == name]
            if len(arm):
                spent: Cost = cost(arm, unit, ancestry=everything)
                totals = [spent.total(count, search=everything) for count in counts]
                axes.plot(counts, totals, marker=".", label=name, **_style(index))
        axes.set_title(title)
        axes.set_xlabel("descendants delivered")
        axes.set_xticks(list(counts))
        axes.set_yscale("log")
        axes.grid(alpha=0.3)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center", fontsize="small")
    return figure

"""The benchmark's Parquet table, Markdown page and plots."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas
import pyarrow

from ray_learngene.compare.arms import ArmPlan
from ray_learngene.compare.front import Front, schedules
from ray_learngene.compare.plan import sizes
from ray_learngene.compare.rules import rules
from ray_learngene.compare.runs import at_border, learning_rates
from ray_learngene.compare.significance import Difference, gains, paired
from ray_learngene.compare.summary import MEASURES, Cost, accuracy, cost, summarise
from ray_learngene.config import BenchConfig
from ray_learngene.models.budgets import format_quantity
from ray_learngene.models.card import render
from ray_learngene.progress import counted
from ray_learngene.provenance import publishable
from ray_learngene.store.store import Store
from ray_learngene.terminal import plot_label

log = logging.getLogger(__name__)

RESULTS, TRANSFER, PAGE, RUNS = "results.parquet", "transfer.parquet", "results.md", "runs.md"
PLOTS = ("accuracy.svg", "break-even.svg")


def write_report(
    config: BenchConfig,
    store: Store,
    table: pandas.DataFrame,
    arms: Sequence[ArmPlan],
    folder: Path,
    moved: pandas.DataFrame | None = None,
) -> None:
    """Write the tables to the store; write the tables, the pages and the plots to a folder.

    Args:
        moved: The descendants on other image sets; see `transfer`.
    """
    for name, rows in {RESULTS: table, TRANSFER: moved}.items():
        if rows is not None:
            store.write_table(f"benches/{config.name}/{name}", pyarrow.Table.from_pandas(rows, preserve_index=False))
            rows.to_parquet(folder / name, index=False)
    (folder / PAGE).write_text(page(config, table, arms, moved))
    (folder / RUNS).write_text(runs_page(config, table))
    names = [row.name for row in arms]
    for figure, name in zip((accuracy_plot(table, names), break_even_plot(table, names)), PLOTS, strict=True):
        figure.savefig(folder / name)
    log.info(f"benchmark {config.name}: {counted(len(table), 'descendant')}; see {folder / PAGE}")


def page(
    config: BenchConfig, table: pandas.DataFrame, arms: Sequence[ArmPlan], moved: pandas.DataFrame | None = None
) -> str:
    """Render the Markdown page: settings and hardware, the table of arms, and a table of sizes for each measure."""
    filters: dict[str, Callable[..., str]] = {
        "quantity": lambda value: format_quantity("params", value),
        "score": lambda pair: f"{pair[0]:.1f} ± {pair[1]:.1f}",
        "rate": _rate,
        "flops": lambda flops: _known(flops, f"{flops:.2e}"),
        "times": lambda ratio: "-" if ratio is None else _known(ratio, f"{ratio:.1f}"),
        "count": _count,
        "bounded": lambda pair: f"{pair[1].replace('=', '')}{pair[0]:.1f}" if pair else "-",
        "interval": _interval,
    }
    specs = [spec for spec in sizes(config, 1) if len(_at(table, spec.width, spec.depth))]
    arms = [row for row in arms if len(table[table["arm"] == row.name])]
    return render(
        "bench.md",
        filters,
        config=publishable(config.model_dump()),
        rows=summarise(table, [row.name for row in arms], config.reference),
        rules=rules(config, table, arms),
        front=_front_rows(config, table),
        against=_against_front(config, table, arms),
        measures=MEASURES,
        specs=specs,
        several_widths=len({spec.width for spec in specs}) > 1,
        cell=lambda arm, measure, spec: _cell(table, arm, measure, spec.width, spec.depth),
        arms={row.name: row for row in arms},
        grids={row.name: _tried(table, row.name, "lrs", learning_rates(config, row)) for row in arms},
        distill_grids={row.name: _tried(table, row.name, "distill_lrs", config.lrs) for row in arms},
        refused={row.name: next(iter(row.refused.values())) for row in arms if row.refused},
        devices=sorted(table["latency_device"].unique()),
        torch=sorted(table["torch"].unique()),
        revisions=sorted(table["revision"].unique()),
        distilled={row.name: next((one.epochs for one in row.distillations.values() if one), None) for row in arms},
        epochs=table.groupby("arm")["epochs"].first().to_dict(),
        transfer=_transfer_rows(config, moved) if moved is not None else None,
    )


def _transfer_rows(config: BenchConfig, moved: pandas.DataFrame) -> list[dict[str, Any]]:
    """Return every arm on every set, mean over sizes and seeds, with its average gain over the reference."""
    gained = gains(moved, config.reference)
    return [
        {
            "arm": name,
            "scores": [
                (accuracy(some, "top1_untuned"), accuracy(some, "top1"), int(some["epochs"].iloc[0]))
                if len(some := rows[rows["set"] == label])
                else None
                for label in config.transfer
            ],
            "gain": gained.get(name),
        }
        for name, rows in moved.groupby("arm", sort=False)
    ]


def _tried(table: pandas.DataFrame, arm: str, column: str, otherwise: Sequence[float]) -> Sequence[float]:
    """Return the learning rates that an arm's search tried; a table of an earlier version does not say them."""
    tried = table.loc[table["arm"] == arm, column].iloc[0] if column in table else None
    return otherwise if tried is None else list(tried)


def _front_rows(config: BenchConfig, table: pandas.DataFrame) -> list[dict[str, Any]]:
    """Return every schedule of the reference at every size, with what the latest doubling brought."""
    if len(schedules(table, config.reference)) < 2:
        return []
    flops, seconds = (Front(table, config.reference, unit).points for unit in ("flops", "seconds"))
    rows = []
    for size, points in flops.items():
        for before, point, timed in zip([None, *points], points, seconds[size], strict=False):
            gain = None if before is None else point.top1 - before.top1
            rows.append({"size": size, "point": point, "seconds": timed.cost, "gain": gain})
    return rows


def _against_front(config: BenchConfig, table: pandas.DataFrame, arms: Sequence[ArmPlan]) -> list[dict[str, Any]]:
    """Return every other arm against the reference's front: cost at equal accuracy, accuracy against its end."""
    longer = schedules(table, config.reference)
    flops, seconds = (Front(table, config.reference, unit) for unit in ("flops", "seconds"))
    plateau = flops.plateau(table, config.reference)
    found = []
    for row in arms:
        arm = table[table["arm"] == row.name]
        if row.name not in {one["arm"].iloc[0] for one in longer.values()} and (less := flops.saving(arm)) is not None:
            found.append(
                {
                    "arm": row.name,
                    "flops": less,
                    "seconds": seconds.saving(arm, "seconds"),
                    "difference": paired(arm, plateau),
                }
            )
    return found


def runs_page(config: BenchConfig, table: pandas.DataFrame) -> str:
    """Render the page that every cell of a table of sizes links to: the descendants it averages, in the store."""
    cells = [
        {
            "arm": arm,
            "width": width,
            "depth": depth,
            "anchor": anchor(arm, width, depth),
            "rows": rows.to_dict("records"),
        }
        for (arm, width, depth), rows in table.groupby(["arm", "width", "depth"], sort=False)
    ]
    return render("bench_runs.md", config=publishable(config.model_dump()), cells=cells)


def anchor(arm: str, width: int, depth: int) -> str:
    """Name the part of the page of runs that lists one arm at one size."""
    return f"{arm}-w{width}-d{depth}".lower().replace(".", "-").replace("_", "-")


def _known(value: float, text: str) -> str:
    return "unknown" if math.isnan(value) else text


def _interval(difference: Difference | None) -> str:
    """Format a paired difference with its 95 % interval; a star marks one that the interval tells from zero."""
    if difference is None:
        return "-"
    half = "unknown (one seed)" if math.isinf(difference.half) else f"{difference.half:.1f}"
    return f"{difference.mean:+.1f} ± {half}{' *' if difference.significant else ''}"


def _rate(lr: float | None, grid: Sequence[float]) -> str:
    """Format a learning rate, with a star if it is the smallest or largest of the searched grid."""
    if lr is None or math.isnan(lr):
        return "-"
    return f"{lr:.1e}{' *' if at_border(lr, grid) else ''}"


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
    text = f"{values.mean():.1f} ± {values.std(ddof=1):.1f}" if len(values) > 1 else f"{values.mean():.1f}"
    return f"[{text}]({RUNS}#{anchor(arm, width, depth)})"


def _style(index: int) -> dict[str, Any]:
    return {"color": f"C{index % 10}", "linestyle": ("-", "--", ":")[index // 10 % 3]}


def _panels(count: int, **options: Any) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4.6), layout="constrained")
    return figure, figure.subplots(1, count, **options)


def accuracy_plot(table: pandas.DataFrame, names: Sequence[str]) -> Any:
    """Plot accuracy against parameters before tuning, after one epoch and at the end; a line per arm and width."""
    figure, panels = _panels(len(MEASURES), sharey=True)
    for axes, (measure, title) in zip(panels, MEASURES.items(), strict=True):
        for index, name in enumerate(names):
            label: str | None = plot_label(name)
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


def break_even_plot(table: pandas.DataFrame, names: Sequence[str]) -> Any:
    """Plot cost against the number of descendants: training FLOPs, seconds, and FLOPs with ancestry and search."""
    figure, panels = _panels(3)
    counts = range(1, 11)
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
                axes.plot(counts, totals, marker=".", label=plot_label(name), **_style(index))
        axes.set_title(title)
        axes.set_xlabel("descendants delivered")
        axes.set_xticks(list(counts))
        axes.set_yscale("log")
        axes.grid(alpha=0.3)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center", fontsize="small")
    return figure

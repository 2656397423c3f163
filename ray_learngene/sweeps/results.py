"""The results table of a sweep: derived from the manifests of its descendants, so that it can always be made anew."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from typing import Any

import pandas
import pyarrow
from jinja2 import Environment, PackageLoader, StrictUndefined

from ray_learngene.errors import UserError
from ray_learngene.models.budgets import format_quantity
from ray_learngene.store.store import Store

RESULTS, PAGE, SETTINGS = "results.parquet", "leaderboard.html", "sweep.json"


def read_settings(store: Store, name: str) -> dict[str, Any] | None:
    """What sweep.json says of a sweep: what its descendants have in `common` and its `budgets`; None without one.

    Raises:
        UserError: it is damaged.
    """
    path = f"sweeps/{name}/{SETTINGS}"
    text = store.read_text(path)
    if text is None:
        return None
    try:
        settings = json.loads(text)
        return {**settings, **{key: dict(settings.get(key, {})) for key in ("common", "budgets")}}
    except (ValueError, TypeError, AttributeError):
        raise UserError(f"{store.objects.uri_of(path)} is damaged: delete it, the sweep makes it anew") from None


def sweep_table(store: Store, name: str, unfinished: Sequence[dict[str, Any]] = ()) -> pandas.DataFrame:
    """One row per published descendant of a sweep, and one for each trial that did not finish."""
    return pandas.DataFrame([*store.rows(name), *unfinished])


def earlier_rows(store: Store, name: str) -> list[dict[str, Any]]:
    """What earlier runs of a sweep settled: its published descendants, and trials that were stopped early."""
    path = f"sweeps/{name}/{RESULTS}"
    table = store.read_table(path).to_pylist() if store.has(path) else []
    return store.rows(name) + [row for row in table if row["status"] == "stopped"]


def write_results(store: Store, name: str, unfinished: Sequence[dict[str, Any]] = ()) -> pandas.DataFrame:
    """Write the table and the page of a sweep."""
    table = sweep_table(store, name, unfinished)
    store.write_table(f"sweeps/{name}/{RESULTS}", pyarrow.Table.from_pandas(table, preserve_index=False))
    store.write_text(f"sweeps/{name}/{PAGE}", leaderboard_page(table, name))
    return table


MEASURES = ("top1_untuned", "top1_epoch1", "top1")


def leaderboard(results: pandas.DataFrame) -> pandas.DataFrame:
    """Mean and deviation over seeds for every size and arm, largest size first.

    Where several learning rates were tried for a descendant, its best one counts.

    Returns:
        One row per (width, depth, arm), with `<measure>` and `<measure>_std` (0 for one seed), costs, seeds and trials.
    """
    finished = results[results["status"] == "finished"]
    size = ["width", "depth", "image", "arm"]
    best = finished.loc[finished.groupby([*size, "seed"])["top1"].idxmax()]
    groups = best.groupby(size, sort=False)
    board = groups[["params", "macs", "memory", "latency"]].first()
    for measure in MEASURES:
        board[measure] = groups[measure].mean()
        board[f"{measure}_std"] = groups[measure].std(ddof=0)
    notes = groups["outside"].first() if "outside" in best else [None] * len(board)  # older rows do not say
    board["outside"] = pandas.Series([note if isinstance(note, str) else "" for note in notes], board.index)
    board["seeds"] = groups.size()
    board["trials"] = finished.groupby(size).size()
    board["seconds"] = finished.groupby(size)["seconds"].sum()
    board = board.reset_index()
    return board.sort_values(["params", "arm"], ascending=[False, True], kind="stable", ignore_index=True)


def any_finished(results: pandas.DataFrame) -> bool:
    """Check whether a results table has a finished descendant."""
    return not results.empty and bool((results["status"] == "finished").any())


def leaderboard_page(results: pandas.DataFrame, name: str) -> str:
    """The leaderboard as one HTML page that needs nothing else: a plot and the table."""
    environment = Environment(loader=PackageLoader("ray_learngene"), undefined=StrictUndefined, autoescape=True)
    environment.filters["quantity"] = lambda value, quantity: format_quantity(quantity, value)
    board = leaderboard(results) if any_finished(results) else pandas.DataFrame()
    return environment.get_template("leaderboard.html").render(
        name=name,
        rows=board.to_dict("records"),
        plot=_plot(board) if len(board) else "",
        unfinished=results[results["status"] != "finished"].to_dict("records") if len(results) else [],
        first=results[results["status"] == "finished"].bfill().iloc[0].to_dict() if len(board) else {},
    )


def _plot(board: pandas.DataFrame) -> str:
    """Accuracy against parameters, a line per arm, as SVG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 4.2), layout="constrained")
    axes = figure.subplots()
    for index, (arm, rows) in enumerate(board.sort_values("params").groupby("arm")):
        color = f"C{index}"
        axes.errorbar(
            rows["params"] / 1e6,
            rows["top1"],
            yerr=rows["top1_std"],
            marker="o",
            color=color,
            capsize=3,
            label=f"{arm}, tuned",
        )
        axes.plot(
            rows["params"] / 1e6,
            rows["top1_untuned"],
            marker=".",
            linestyle=":",
            color=color,
            label=f"{arm}, before tuning",
        )
    axes.set_xlabel("parameters (millions)")
    axes.set_ylabel("top-1 on the validation split (%)")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg")
    text = buffer.getvalue()
    return text[text.index("<svg") :]

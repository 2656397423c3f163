"""`learngene sweep`: train descendants of many sizes, and print the leaderboard."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas

from ray_learngene.config import SweepConfig
from ray_learngene.errors import RunError
from ray_learngene.models.budgets import format_quantity
from ray_learngene.pages.spending import spending_lines
from ray_learngene.store.costs import COST_NOTE, cost_text, epochs_text
from ray_learngene.store.store import Store
from ray_learngene.store.sweeps import PAGE, RESULTS, read_settings
from ray_learngene.sweeps.results import MEASURES, any_finished, leaderboard, sweep_table
from ray_learngene.sweeps.sweep import sweep
from ray_learngene.terminal import Table, one_line, print_table


def print_sweep(config: SweepConfig) -> None:
    """Train every descendant that is not finished yet, and print the leaderboard.

    Raises:
        RunError: some descendants failed; the leaderboard shows the others.
    """
    store = Store.of(config)
    try:
        table = sweep(config)
    except RunError:
        _print_results(config, store, sweep_table(store, config.name))
        raise
    _print_results(config, store, table)


def _print_results(config: SweepConfig, store: Store, table: pandas.DataFrame) -> None:
    settings = read_settings(store, config.name) or {}
    print_leaderboard(table, settings.get("budgets"))
    for line in spending_lines(store, config.name):
        print(line)
    print(f"results: {store.uri}/sweeps/{config.name}/{RESULTS} and {PAGE}", flush=True)


def print_leaderboard(results: pandas.DataFrame, budgets: Mapping[str, int] | None = None) -> None:
    """Print the leaderboard of a results table.

    Args:
        budgets: Budgets with the parameters of the size that each chose, shown next to the sizes.
    """
    if not any_finished(results):
        print("no descendant has finished yet")
        return
    board = leaderboard(results)
    several = bool((board["seeds"] > 1).any())
    table = Table(title=f"sweep {results['sweep'].iloc[0]}", title_justify="left", title_style="bold")
    if budgets:
        table.add_column("budget")
    for name in ("width", "depth", "parameters", "MACs", "latency"):
        table.add_column(name, justify="right")
    table.add_column("arm")
    for name in ("untuned", "epoch 1", "final top-1 %"):
        table.add_column(name, justify="right")
    for name in ("training", "whole cost", "undivided"):
        table.add_column(name, justify="right")
    previous = None
    for row in board.to_dict("records"):
        first = row["params"] != previous
        if first and previous is not None:
            table.add_section()
        previous = row["params"]
        cells = [
            str(row["width"]),
            row["stages"] if isinstance(row["stages"], str) else str(row["depth"]),
            format_quantity("params", row["params"]),
            format_quantity("macs", row["macs"]),
            format_quantity("latency", row["latency"]),
        ]
        if budgets:
            cells.insert(0, "\n".join(text for text, params in budgets.items() if params == row["params"]))
        scores = [_score(row, measure, several) for measure in MEASURES]
        table.add_row(
            *(cells if first else [""] * len(cells)),
            f"{row['arm']}{' *' if row['outside'] else ''}{epochs_text(row)}",
            *scores,
            f"{row['seconds']:.1f} s",
            cost_text(row, "whole"),
            cost_text(row, "undivided"),
        )
    print_table(table)
    print(COST_NOTE)
    for note in filter(None, dict.fromkeys(board["outside"])):
        print(f"* {one_line(note)}")


def _score(row: Mapping[str, Any], measure: str, several: bool) -> str:
    return f"{row[measure]:.2f} ± {row[f'{measure}_std']:.2f}" if several else f"{row[measure]:.2f}"

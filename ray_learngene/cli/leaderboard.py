"""The leaderboard of a sweep, as the terminal shows it; nothing but a thin client is needed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean, pstdev
from typing import Any

from ray_learngene.models.budgets import format_quantity
from ray_learngene.store.costs import COST_NOTE, UNITS, cost_text, epochs_text
from ray_learngene.terminal import Table, one_line, print_table

MEASURES = ("top1_untuned", "top1_epoch1", "top1")
_GROUP = ("width", "depth", "image", "params", "arm", "epochs")  # stages of one total depth differ in parameters

Row = Mapping[str, Any]


def leaderboard(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """Return a line for every size and arm, the largest size first: means and deviations over seeds.

    Where several learning rates were tried for a descendant, its best one counts; costs are those of all.

    Returns:
        Rows with `<measure>_std` (0 for one seed), `seeds` and `trials` in addition.
    """
    groups = defaultdict[tuple[Any, ...], list[Row]](list)
    for row in rows:
        if row["status"] == "finished":
            groups[tuple(row.get(name) for name in _GROUP)].append(row)
    lines = [_line(group) for group in groups.values()]
    return sorted(lines, key=lambda line: (-line["params"], line["arm"], line["width"], line.get("epochs") or 0))


def _line(trials: Sequence[Row]) -> dict[str, Any]:
    best: dict[Any, Row] = {}
    for row in trials:
        if row["seed"] not in best or row["top1"] > best[row["seed"]]["top1"]:
            best[row["seed"]] = row
    chosen = list(best.values())
    line = {**chosen[0], "seeds": len(chosen), "trials": len(trials), "seconds": sum(row["seconds"] for row in trials)}
    for measure in MEASURES:
        values = [row[measure] for row in chosen]
        line |= {measure: fmean(values), f"{measure}_std": pstdev(values)}
    for unit in UNITS:
        own = [row[f"own_{unit}"] for row in trials if row.get(f"own_{unit}") is not None]
        for kind in (f"whole_{unit}", f"undivided_{unit}"):
            shared = [row[kind] - row[f"own_{unit}"] for row in chosen if row.get(kind) is not None]
            # every learning rate that was tried counts, and of seeds the mean
            known = len(own) == len(trials) and len(shared) == len(chosen)
            line[kind] = sum(own) / len(chosen) + fmean(shared) if known else None
    return line


def print_leaderboard(rows: Iterable[Row], budgets: Mapping[str, int] | None = None) -> None:
    """Print the leaderboard of a sweep's rows.

    Args:
        budgets: Budgets with the parameters of the size that each chose, shown next to the sizes.
    """
    board = leaderboard(rows)
    if not board:
        print("no descendant has finished yet")
        return
    several = any(line["seeds"] > 1 for line in board)
    table = Table(title=f"sweep {board[0]['sweep']}", title_justify="left", title_style="bold")
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
    for line in board:
        first = line["params"] != previous
        if first and previous is not None:
            table.add_section()
        previous = line["params"]
        cells = [
            str(line["width"]),
            str(line.get("stages") or line["depth"]),
            format_quantity("params", line["params"]),
            format_quantity("macs", line["macs"]),
            format_quantity("latency", line["latency"]),
        ]
        if budgets:
            cells.insert(0, "\n".join(text for text, params in budgets.items() if params == line["params"]))
        table.add_row(
            *(cells if first else [""] * len(cells)),
            f"{line['arm']}{' *' if line.get('outside') else ''}{epochs_text(line)}",
            *(_score(line, measure, several) for measure in MEASURES),
            f"{line['seconds']:.1f} s",
            cost_text(line, "whole"),
            cost_text(line, "undivided"),
        )
    print_table(table)
    print(COST_NOTE)
    for note in filter(None, dict.fromkeys(line.get("outside") for line in board)):
        print(f"* {one_line(note)}")


def _score(line: Row, measure: str, several: bool) -> str:
    return f"{line[measure]:.2f} ± {line[f'{measure}_std']:.2f}" if several else f"{line[measure]:.2f}"

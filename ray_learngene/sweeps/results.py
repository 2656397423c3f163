"""The results table of a sweep, derived from the manifests of its descendants."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas
import pyarrow

from ray_learngene.pages.columns import records_of
from ray_learngene.pages.page import SweepPage
from ray_learngene.store.costs import UNITS, costed, costed_rows
from ray_learngene.store.store import Store
from ray_learngene.store.sweeps import PAGE, RESULTS, sweep_file


def sweep_table(store: Store, name: str, unfinished: Sequence[dict[str, Any]] = ()) -> pandas.DataFrame:
    """Return a row with its whole cost per published descendant of a sweep, and one per trial that did not finish."""
    return pandas.DataFrame([*costed_rows(store, name), *unfinished])


def earlier_rows(store: Store, name: str) -> list[dict[str, Any]]:
    """Return what earlier runs of a sweep settled: its published descendants, and trials that were stopped early."""
    table = store.find_table(sweep_file(name, RESULTS))
    return store.rows(name) + [row for row in (table.to_pylist() if table else ()) if row["status"] == "stopped"]


def write_results(store: Store, name: str, unfinished: Sequence[dict[str, Any]] = ()) -> pandas.DataFrame:
    """Write the table and the page of a sweep."""
    found = store.finished(name)
    rows = costed([entry.facts for entry in found], store, name)
    table = pandas.DataFrame([*rows, *unfinished])
    store.write_table(sweep_file(name, RESULTS), pyarrow.Table.from_pandas(table, preserve_index=False))
    page = SweepPage(store, name).text(records_of(rows, found), unfinished)
    store.write_text(sweep_file(name, PAGE), page)
    return table


MEASURES = ("top1_untuned", "top1_epoch1", "top1")


def leaderboard(results: pandas.DataFrame) -> pandas.DataFrame:
    """Mean and deviation over seeds for every size and arm, largest size first.

    Where several learning rates were tried for a descendant, its best one counts.

    Returns:
        One row per (width, depth, arm), with `<measure>` and `<measure>_std` (0 for one seed), costs, seeds and trials.
    """
    finished = results[results["status"] == "finished"]
    size = ["width", "depth", "image", "params", "arm", "epochs"]  # stages of one total depth differ in parameters
    best = finished.loc[finished.groupby([*size, "seed"])["top1"].idxmax()]
    groups = best.groupby(size, sort=False)
    board = groups[["macs", "memory", "latency"]].first()
    board["stages"] = groups["stages"].first() if "stages" in best else None
    for measure in MEASURES:
        board[measure] = groups[measure].mean()
        board[f"{measure}_std"] = groups[measure].std(ddof=0)
    notes = groups["outside"].first() if "outside" in best else [None] * len(board)  # older rows do not say
    board["outside"] = pandas.Series([note if isinstance(note, str) else "" for note in notes], board.index)
    board["seeds"] = groups.size()
    board["trials"] = finished.groupby(size).size()
    board["seconds"] = finished.groupby(size)["seconds"].sum()
    board["scratch"] = groups["scratch"].first() if "scratch" in best else None
    for unit in UNITS if "own_flops" in best else ():
        # every learning rate that was tried counts, and of seeds the mean
        own = finished.groupby(size)[f"own_{unit}"].sum(min_count=1) / board["seeds"]
        for kind in ("whole", "undivided"):
            board[f"{kind}_{unit}"] = own + groups[f"{kind}_{unit}"].mean() - groups[f"own_{unit}"].mean()
    board = board.reset_index()
    return board.sort_values(["params", "arm"], ascending=[False, True], kind="stable", ignore_index=True)


def any_finished(results: pandas.DataFrame) -> bool:
    """Check whether a results table has a finished descendant."""
    return not results.empty and bool((results["status"] == "finished").any())

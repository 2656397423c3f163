"""The proof's rows as the table of `learngene bench`, so that both are judged by the same functions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas

from benchmarks.proof.charges import Charges
from ray_learngene.compare.front import longer_name

Row = Mapping[str, Any]
REFERENCES = ("scratch", "distilled")  # each size alone: from labels, and from the learngenes' teacher


def table(rows: Sequence[Row], data: str, charges: Charges | None = None, *, untuned: bool = False) -> pandas.DataFrame:
    """The finished runs on a data set, one a row.

    The references' arms are `scratch`, `scratch-x2`, ... by their epochs; others end with theirs: `any-size 40`.

    Args:
        charges: What runs cost in seconds; default: CPU seconds of their processes.
        untuned: Learngenes' descendants as they are before tuning.
    """
    rows = [row for row in rows if row["data"] == data]
    finished = [row for row in rows if row["status"] == "finished" and not row["searching"]]
    shortest = {arm: min((row["epochs"] for row in finished if row["arm"] == arm), default=0) for arm in REFERENCES}
    return pandas.DataFrame([_entry(row, rows, shortest, charges, untuned) for row in finished])


def _entry(
    row: Row, rows: Sequence[Row], shortest: Mapping[str, int], charges: Charges | None, untuned: bool
) -> dict[str, Any]:
    learngene, teacher = row.get("learngene"), row.get("teacher")
    before = untuned and learngene is not None
    arm = row["arm"]
    name = longer_name(arm, row["epochs"] // shortest[arm]) if arm in REFERENCES else f"{arm} {row['epochs']}"
    return {
        **{column: row[column] for column in ("width", "depth", "seed")},
        "arm": name,
        "trained": arm,  # the arm without its schedule
        "epochs": row["epochs"],
        "top1": row["top1_untuned" if before else "top1"],
        "per_size": False,
        "learngene": learngene and learngene["name"],
        **_costs("tune", *(0.0 if before else one for one in _own(row, charges))),
        **_costs("learngene", *_spent(learngene, charges and charges.learngene(row))),
        **_costs("search", *_searched(row, rows, charges)),
        **_costs("ancestry", *_spent(teacher, charges and charges.teacher(row))),
    }


def _costs(on: str, flops: float, teacher: float, seconds: float) -> dict[str, float]:
    return {f"{on}_flops": flops, f"{on}_teacher_flops": teacher, f"{on}_seconds": seconds}


def _own(row: Row, charges: Charges | None) -> tuple[float, float, float]:
    """FLOPs, the teacher's FLOPs and seconds of a run itself; models of one sweep share the teacher's passes."""
    if row["flops"] is None:  # it diverged
        return 0.0, 0.0, row["cpu_seconds"]
    own = row["flops"] + (row.get("fit_flops") or 0.0)
    return (
        own,
        row["teacher_flops"] / row["sweep"]["models"],
        charges.descendant(row) if charges else row["cpu_seconds"],
    )


def _spent(made: Mapping[str, Any] | None, seconds: float | None) -> tuple[float, float, float]:
    """FLOPs, the teacher's FLOPs and seconds of a learngene, with what it started from, or of a teacher."""
    if made is None:
        return 0.0, 0.0, 0.0
    before, cost = _spent(made.get("start"), None), made["cost"]
    own = cost["flops"], cost.get("teacher_flops", 0.0), made["cpu_seconds"]
    flops, teacher, used = (sum(pair) for pair in zip(own, before, strict=True))
    return flops, teacher, used if seconds is None else seconds


def _searched(row: Row, rows: Iterable[Row], charges: Charges | None) -> tuple[float, float, float]:
    """What the search of half as many epochs cost."""
    return cost_together(
        [one for one in rows if one["searching"] and (one["arm"], 2 * one["epochs"]) == (row["arm"], row["epochs"])],
        charges,
    )


def cost_together(found: Sequence[Row], charges: Charges | None = None) -> tuple[float, float, float]:
    """FLOPs, the teacher's FLOPs and seconds of runs, with the learngenes that they come from."""
    made = {one["learngene"]["name"]: one for one in found if one.get("learngene")}
    costs = [_own(one, charges) for one in found]
    costs += [_spent(one["learngene"], charges and charges.learngene(one)) for one in made.values()]
    flops, teacher, seconds = zip(*costs, (0.0, 0.0, 0.0), strict=True)
    return sum(flops), sum(teacher), sum(seconds)

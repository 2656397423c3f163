"""The proof's transfer as Markdown: top-1 by arm and image set, and what arms gain over training from scratch."""

from __future__ import annotations

from collections.abc import Sequence

import pandas

from benchmarks.proof.plan import Row
from ray_learngene.compare.significance import gains

REFERENCE = "scratch"
MADE_FROM = "cifar10"  # the learngenes have seen all of its training images


def transfer_lines(rows: Sequence[Row]) -> list[str]:
    """A table of all arms that are finished on every set that the reference is; empty without rows.

    The gain is over sets that the learngenes were not made from.
    """
    finished = pandas.DataFrame([row for row in rows if not row["searching"]])
    if not len(finished) or REFERENCE not in set(finished["arm"]):
        return []
    finished = finished.assign(width=0, depth=0)  # one size
    sets = list(dict.fromkeys(finished[finished["arm"] == REFERENCE]["set"]))
    means = finished.groupby(["arm", "set"])["top1"].mean()
    over = gains(finished[~finished["set"].str.startswith(MADE_FROM)], REFERENCE)
    lines = [f"| arm | {' | '.join(sets)} | gain over {REFERENCE} |", "|---" * (len(sets) + 2) + "|"]
    for arm in finished["arm"].drop_duplicates():
        if all((arm, name) in means.index for name in sets):
            gain = over.get(arm)
            said = "" if gain is None else f"{gain.mean:+.1f}" + (f" ± {gain.half:.1f}" if gain.seeds > 1 else "")
            lines.append(f"| {arm} | {' | '.join(f'{means[arm, name]:.1f}' for name in sets)} | {said} |")
    return lines

"""python -m benchmarks.proof.sws16

Print SWS at its paper's proportions (sws16.yaml) next to 20 epochs of scratch. It trains nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.proof.run import ROWS, read_rows

SWS_ROWS = Path(__file__).with_name("sws16.jsonl")
TUNED = {"sws-16-tuned-1": 1, "sws-16-tuned-5": 5, "sws-16-tuned": 10}  # epochs by arm
SIZES, EPOCHS = range(6, 16), 20  # the ten sizes of the paper, by layers; epochs of scratch and of the distillation
STAGES = 5  # each stores a block, so the learngene has the parameters of a model of so many layers


def lines(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return a table of accuracies, and one of what ten sizes cost.

    FLOPs and parameters grow by the same amount with every layer, so those of other sizes follow from two.
    """
    rows = [row for row in rows if row["seed"] == 0 and row["epochs"] == EPOCHS and not row["searching"]]
    arms = {arm: {row["depth"]: row for row in rows if row["arm"] == arm} for arm in ("scratch", *TUNED)}
    tuned = {arm: found for arm, found in arms.items() if arm in TUNED and found}
    first, scratch = next(iter(tuned.values())), arms["scratch"]
    depths = sorted(first)
    table = ["| | " + " | ".join(f"{depth} layers" for depth in depths) + " |", "|---" * (len(depths) + 1) + "|"]

    def line(name: str, found: dict[int, dict[str, Any]], column: str = "top1") -> str:
        return f"| {name} | " + " | ".join(f"{found[depth][column]:.1f}" for depth in depths) + " |"

    table += [line(f"scratch, {EPOCHS} epochs", scratch), line("SWS, as expanded", first, "top1_untuned")]
    table += [line(f"SWS, {epochs(TUNED[arm])} of tuning", found) for arm, found in tuned.items()]

    once = first[depths[0]]["learngene"]["cost"]
    distilled, taught = once["flops"], once["teacher_flops"]
    trained, stored = _all(SIZES, scratch, "flops"), _all(SIZES, scratch, "params")
    learngene = _all([STAGES], scratch, "params")
    table += ["", "| ten sizes | scratch or each size alone | SWS | times less |", "|---|---|---|---|"]
    for arm, found in tuned.items():
        own = distilled + taught + _all(SIZES, found, "flops")
        said = f"training, {epochs(TUNED[arm])} of tuning, TFLOPs"
        table.append(f"| {said} | {trained / 1e12:.1f} | {own / 1e12:.1f} | {trained / own:.1f} |")
    each = trained + len(SIZES) * taught
    pretrained = distilled + taught
    table.append(
        f"| pre-training (each size distilled), TFLOPs | {each / 1e12:.1f} | {pretrained / 1e12:.1f} "
        f"| {each / pretrained:.1f} |"
    )
    return [*table, f"| stored parameters | {stored:,.0f} | {learngene:,.0f} | {stored / learngene:.1f} |"]


def epochs(count: int) -> str:
    return f"{count} epoch" + "s" * (count > 1)


def _all(sizes: Sequence[int], found: dict[int, dict[str, Any]], column: str) -> float:
    """The sum of a column over sizes of so many layers."""
    slope, base = np.polyfit(list(found), [row[column] for row in found.values()], 1)
    return float(sum(base + slope * size for size in sizes))


if __name__ == "__main__":
    print("\n".join(lines([*read_rows(ROWS), *read_rows(SWS_ROWS)])))

"""Transfer: the same learngenes tuned on other image sets, as WAVE reports it (Feng et al., CVPR 2025).

Every arm that tunes on labels is tuned on every set, at a learning rate searched there on held-out training images.
Classes differ from those of the distillation, so every descendant gets a fresh head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pandas

from ray_learngene.compare.arms import ArmPlan
from ray_learngene.compare.runs import arm_text
from ray_learngene.compare.searches import search_tuning
from ray_learngene.compare.table import Chosen, current_descendants
from ray_learngene.compare.tuning import final_sweeps
from ray_learngene.config import BenchConfig
from ray_learngene.config.numbers import parse_numbers
from ray_learngene.data.pipeline import checked_image_sets
from ray_learngene.store.manifest import folder_of
from ray_learngene.store.store import Store

_MEASURES = ("width", "depth", "seed", "lr", "epochs", "top1_untuned", "top1_epoch1", "top1", "flops", "seconds")


def transfer(
    config: BenchConfig, store: Store, arms: Sequence[ArmPlan], base: str, chosen: Chosen
) -> pandas.DataFrame | None:
    """Tune all arms on the sets of `config.transfer`; None if there are none.

    Args:
        base: Learngene that gives all descendants their preprocessing.

    Returns:
        One row per descendant: `set`, `arm`, and what was measured.
    """
    rows = []
    for label in config.transfer:
        target = config.onto(label)
        moved = [_moved(row, target) for row in arms if row.arm.tune != "distilled"]
        moved = [row for row in moved if row.specs]
        there = Chosen(distill=chosen.distill)
        search_tuning(target, store, moved, base, there)
        for name, some in final_sweeps(target, moved, base, there).items():
            arm_of = {arm_text(target, row, there.distill): row.name for row in some}
            found = (one.metadata["row"] for one in current_descendants(store, name))
            rows += [
                {"set": label, "arm": arm_of[row["arm"]], **{measure: row[measure] for measure in _MEASURES}}
                for row in found
                if row["arm"] in arm_of
            ]
    return pandas.DataFrame(rows) if rows else None


def check_sets(config: BenchConfig) -> None:
    """Open every set of `config.transfer`, before anything is trained.

    Raises:
        UserError: a setting or a set is not usable; the message names it.
    """
    for label in config.transfer:
        folder_of("learngene", f"{config.name}-to-{label}")
        checked_image_sets(config.onto(label))


def _moved(row: ArmPlan, target: BenchConfig) -> ArmPlan:
    """Return the arm at the sizes of the transfer; in full it trains for the set's own epochs."""
    depths = parse_numbers("transfer_depths", target.transfer_depths or target.depths)
    sizes = {spec: made for spec, made in row.distillations.items() if spec.depth in depths}
    return replace(row, arm=row.arm.model_copy(update={"epochs": None}), distillations=sizes)

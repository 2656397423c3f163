"""The sweeps that train a benchmark's descendants at the chosen learning rates."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from ray_learngene.compare.arms import ArmPlan
from ray_learngene.compare.runs import arm_text, sweep_config, tuning_epochs
from ray_learngene.compare.table import Chosen
from ray_learngene.config import BenchConfig
from ray_learngene.models.specs import Spec
from ray_learngene.sweeps.sweep import sweep


def final_sweeps(config: BenchConfig, arms: Sequence[ArmPlan], base: str, chosen: Chosen) -> dict[str, list[ArmPlan]]:
    """Run one sweep for all arms with the same tuning, sizes and learning rate; return the arms by sweep name."""
    groups: dict[tuple[str, int, float, tuple[Spec, ...]], list[ArmPlan]] = defaultdict(list)
    for row in arms:
        for width in dict.fromkeys(spec.width for spec in row.specs):
            some = tuple(spec for spec in row.specs if spec.width == width)
            groups[row.arm.tune, tuning_epochs(config, row), chosen.tune[row.name], some].append(row)
    sweeps = {}
    for (_, _, lr, specs), some_rows in groups.items():
        texts = [arm_text(config, row, chosen.distill) for row in some_rows]
        run = sweep_config(config, some_rows[0], texts, base, lr, specs, search=False)
        sweep(run)
        sweeps[run.name] = some_rows
    return sweeps

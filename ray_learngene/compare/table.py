"""The benchmark's table: a row per descendant, with its cost and those of its learngene and of the search."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import pandas

from ray_learngene.compare.arms import ArmPlan, Distillation
from ray_learngene.compare.runs import arm_text, distill_config, sweep_config
from ray_learngene.config import BenchConfig
from ray_learngene.store.lineage import ancestry_costs
from ray_learngene.store.manifest import Manifest
from ray_learngene.store.store import Store

COSTS = ("images", "flops", "teacher_flops", "seconds")


@dataclass
class Chosen:
    """The learning rates that the searches chose, for every distillation and for every arm's tuning.

    Attributes:
        searched: For each distillation, the one at whose size its learning rate was searched.
        distill: Of each distillation.
        tune: Of each arm's tuning, by the arm's name.
        distill_tried: Every rate that the search tried.
        tried: The same of tuning.
    """

    searched: dict[Distillation, Distillation] = field(default_factory=dict)
    distill: dict[Distillation, float] = field(default_factory=dict)
    tune: dict[str, float] = field(default_factory=dict)
    distill_tried: dict[Distillation, tuple[float, ...]] = field(default_factory=dict)
    tried: dict[str, tuple[float, ...]] = field(default_factory=dict)


def bench_table(
    config: BenchConfig, store: Store, sweeps: Mapping[str, Sequence[ArmPlan]], chosen: Chosen, seen: Mapping[str, Any]
) -> pandas.DataFrame:
    """Read every descendant of the final sweeps from the store.

    Columns in addition to those of a sweep:

    - `arm` (the row's name), `method`, `tune`, `per_size` (every size has its own learngene);
    - `torch` and `revision` (the versions that trained it), `history` (top-1 by epoch, the untuned model first);
    - `lrs`, `distill_lrs` (the learning rates that were tried, one if there was no search);
    - costs `tune_*` (with adapter fitting), `learngene_*`, `search_*`: images, FLOPs, teacher FLOPs, seconds;
    - costs of the ancestry model's training as `ancestry_*`, empty if unknown.

    Args:
        sweeps: The arms of each sweep, by the sweep's name.
        seen: Columns that are the same in every row.
    """
    search = {row.name: _search_cost(config, store, row, chosen) for some in sweeps.values() for row in some}
    ancestry = _ancestry_cost(config, store)
    table = []
    for name, some in sweeps.items():
        by_text = {arm_text(config, row, chosen.distill): row for row in some}
        for manifest in current_descendants(store, name):
            one = manifest.metadata["row"]
            if one["arm"] not in by_text or one["seed"] not in range(config.seed, config.seed + config.seeds):
                continue  # from an earlier run with other arms or more seeds
            row = by_text[one["arm"]]
            table.append(
                {
                    **one,
                    "arm": row.name,
                    "method": row.arm.method,
                    "per_size": row.per_size,
                    "tune": row.arm.tune,
                    "torch": manifest.metadata["versions"]["torch"],
                    "revision": (manifest.metadata["git_revision"] or "unknown")[:12],
                    "history": [entry["top1"] for entry in manifest.metadata["history"]],
                    "distill_lr": _distilled(row, one, chosen.distill),
                    "lrs": chosen.tried[row.name],
                    "distill_lrs": _distilled(row, one, chosen.distill_tried),
                    "tune_images": one["images"] + one["fit_images"],
                    "tune_flops": one["flops"] + one["fit_flops"],
                    "tune_teacher_flops": one["teacher_flops"],
                    "tune_seconds": one["seconds"] + one["fit_seconds"],
                    **{f"search_{cost}": search[row.name][cost] for cost in COSTS},
                    **{f"ancestry_{cost}": ancestry.get(cost) for cost in ("images", "flops", "seconds")},
                    **seen,
                }
            )
    return pandas.DataFrame(table)


def current_descendants(store: Store, sweep: str) -> Iterator[Manifest]:
    """Yield a sweep's descendants, except those whose learngene has been replaced or removed since."""

    @cache
    def version(learngene: str) -> str | None:
        manifest = store.look_up("learngene", learngene)
        return manifest.version if manifest else None

    for manifest in store.manifests("descendant", under=sweep):
        row = manifest.metadata["row"]
        if not row["learngene"] or version(row["learngene"]) == row["learngene_version"]:
            yield manifest


def _distilled(row: ArmPlan, one: dict[str, Any], chosen: Mapping[Distillation, Any]) -> Any:
    """Return what was chosen for the distillation that made a descendant's learngene; None if it has none."""
    for spec, distillation in row.distillations.items():
        if distillation is not None and (spec.width, spec.depth) == (one["width"], one["depth"]):
            return chosen[distillation]
    return None


def _ancestry_cost(config: BenchConfig, store: Store) -> dict[str, Any]:
    return ancestry_costs([config.ancestry], store) if config.ancestry.startswith("store:") else {}


def _search_cost(config: BenchConfig, store: Store, row: ArmPlan, chosen: Chosen) -> dict[str, float]:
    """Sum the cost of an arm's learning rate search: a distillation and a tuning at every rate of the grids."""
    total = dict.fromkeys(COSTS, 0.0)
    owners = {chosen.searched[d] for spec in row.specs if (d := row.distillations[spec]) is not None}
    for owner in owners:
        rates = chosen.distill_tried[owner]
        for lr in rates if len(rates) > 1 else ():
            name = distill_config(config, owner, lr, config.seed, search=True).name
            if not store.exists("learngene", name):  # it diverged and stopped early
                continue
            cost = store.manifest("learngene", name).metadata["cost"]
            for key in COSTS:
                total[key] += cost[key]
    for lr in chosen.tried[row.name] if len(chosen.tried[row.name]) > 1 else ():
        name = sweep_config(config, row, (), "any", lr, [row.middle], search=True).name
        for manifest in current_descendants(store, name):
            one = manifest.metadata["row"]
            if one["arm"] == arm_text(config, row, chosen.distill):
                for key in COSTS:
                    total[key] += one[key] + one.get(f"fit_{key}", 0)
    return total

"""Epochs of arms without a learngene, such as scratch, that cost as much as a descendant of the learngene does."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ray_learngene.config import PlanConfig, SweepConfig
from ray_learngene.models.specs import Spec
from ray_learngene.store.costs import learngene_cost
from ray_learngene.store.learngenes import StoredLearngene
from ray_learngene.store.lineage import ancestry_costs, sources_of
from ray_learngene.store.store import Store
from ray_learngene.sweeps.arms import Arm
from ray_learngene.training.flops import TRAINING_PASSES, training_flops


def equal_cost_epochs(
    config: PlanConfig | SweepConfig,
    arms: Sequence[Arm],
    learngenes: Mapping[str, StoredLearngene],
    store: Store,
    *,
    steps_per_epoch: int,
    costs: Mapping[Spec, Mapping[str, Any]],
    teacher_flops: int = 0,
    earlier: Iterable[tuple[int | str, int]] = (),
) -> dict[Spec, int]:
    """Return the epochs by spec at which an arm without a learngene costs the FLOPs of one with it.

    Its share, its fit and its tuning count.

    What sizes share (the learngene and the ancestry models of this store) is divided by their number. If learning rates
    are searched, every rate gets its part of the share. Empty if a cost is not known, or all arms have learngenes.

    Args:
        arms: Of the sweep; the first one with a learngene is the one to equal, else the sweep's learngene.
        costs: Of all sizes.
        teacher_flops: Of a forward pass of the model that teaches the descendants themselves, for each image.
        earlier: Image size and parameters of the sizes that the sweep has already.
    """
    if all(arm.learngene for arm in arms):
        return {}
    arm, specs = next((arm for arm in arms if arm.learngene), None), list(costs)

    def name_of(spec: Spec) -> str:
        return (arm and arm.learngene_of(spec, config.seed)) or config.learngene

    facts = {name: learngenes[name].facts() for name in map(name_of, specs)}
    spent = {name: learngene_cost(row, "flops") for name, row in facts.items()}
    if any(cost is None for cost in spent.values()):
        return {}
    sharing = {name: sum(name_of(spec) == name for spec in specs) for name in spent}
    more = len({*earlier} - {(spec.image.plain, costs[spec]["params"]) for spec in specs}) if len(spent) == 1 else 0
    origins = [reference for name in spent for reference in sources_of(learngenes[name].manifest)]
    ancestry = ancestry_costs([*origins, *([config.ancestry] if config.ancestry else [])], store)["flops"]
    epochs = {}
    for spec in specs:
        name = name_of(spec)
        share = (spent[name] or 0) / (sharing[name] + more) + ancestry / (len(specs) + more)
        adapter = arm and arm.method.adapter(learngenes[name].learngene, spec)
        if adapter and adapter.fit_steps:
            share += training_flops(adapter, spec.image, batch=config.batch_size, steps=adapter.fit_steps)  # type: ignore[arg-type]
        images = steps_per_epoch * config.batch_size * max(1, config.lr_search)
        epoch = (2 * TRAINING_PASSES * costs[spec]["macs"] + teacher_flops) * images
        epochs[spec] = config.epochs + round(share / epoch)
    return epochs

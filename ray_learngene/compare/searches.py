"""Learning rate searches: the grid grows where its best rate is at the border."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import TypeVar

from ray_learngene.compare.arms import ArmPlan, Distillation
from ray_learngene.compare.distillations import distill_all, refuse_failed
from ray_learngene.compare.runs import arm_text, at_border, distill_config, learning_rates, sweep_config, tuning_epochs
from ray_learngene.compare.table import Chosen, current_descendants
from ray_learngene.config import BenchConfig
from ray_learngene.errors import Diverged, UserError
from ray_learngene.models.specs import Spec
from ray_learngene.store.store import Store
from ray_learngene.sweeps.sweep import sweep

Owner = TypeVar("Owner")
Losses = dict[float, float]  # validation loss by learning rate; infinite if the rate diverged


def search_distillation(
    config: BenchConfig, store: Store, distillations: Sequence[Distillation], chosen: Chosen
) -> None:
    """Choose the best learning rate of every distillation on images held out of the training split.

    A family searches at its largest size. A learning rate that diverges is ruled out. Any other failure ends the
    search, because it would choose among fewer rates than reported.
    """
    searched: dict[str, Distillation] = {}
    for one in sorted(distillations, key=lambda one: (one.spec.width, one.spec.depth)):
        searched[one.family] = one
    why: list[str] = []
    measure = partial(_distillation_losses, config, store, why)
    found = _searched(config, searched.values(), config.lrs, measure)
    for one in distillations:
        owner = chosen.searched[one] = searched[one.family]
        chosen.distill_tried[one] = tuple(sorted(found[owner])) or config.lrs
        chosen.distill[one] = best_rate(found[owner], why) if found[owner] else config.lrs[0]


def _distillation_losses(
    config: BenchConfig, store: Store, why: list[str], wanted: Sequence[tuple[Distillation, float]]
) -> dict[tuple[Distillation, float], float]:
    runs = {(one, lr): distill_config(config, one, lr, config.seed, search=True) for one, lr in wanted}
    failed = distill_all(config, store, list(runs.values()), "search")
    refuse_failed({name: failure for name, failure in failed.items() if not failure.diverged})
    why += [failure.reason for failure in failed.values()]
    return {
        pair: math.inf if run.name in failed else store.manifest("learngene", run.name).metadata["metrics"]["val_loss"]
        for pair, run in runs.items()
    }


def _searched(
    config: BenchConfig,
    owners: Iterable[Owner],
    grid: Sequence[float],
    measure: Callable[[Sequence[tuple[Owner, float]]], Mapping[tuple[Owner, float], float]],
) -> dict[Owner, Losses]:
    """Search, unless there is one rate to choose from: then nothing is measured."""
    if len(grid) == 1:
        return {owner: {} for owner in owners}
    return search_rates(owners, grid, config.search_more, measure)


def search_tuning(config: BenchConfig, store: Store, arms: Sequence[ArmPlan], base: str, chosen: Chosen) -> None:
    """Choose the best learning rate of every arm at its middle size, on the held-out training images.

    The learngenes were distilled on these images too; their labels were used only if alpha is below 1.
    """
    groups: dict[tuple[str, int, Spec], list[ArmPlan]] = defaultdict(list)
    for row in arms:
        groups[row.arm.tune, tuning_epochs(config, row), row.middle].append(row)
    for (_, _, spec), some in groups.items():
        by_name = {row.name: row for row in some}
        why: list[str] = []
        measure = partial(_tuning_losses, config, store, by_name, base, spec, chosen, why)
        grid = learning_rates(config, some[0])
        for name, losses in _searched(config, by_name, grid, measure).items():
            chosen.tried[name] = tuple(sorted(losses)) or grid
            chosen.tune[name] = best_rate(losses, why) if losses else grid[0]


def _tuning_losses(
    config: BenchConfig,
    store: Store,
    arms: Mapping[str, ArmPlan],
    base: str,
    spec: Spec,
    chosen: Chosen,
    why: list[str],
    wanted: Sequence[tuple[str, float]],
) -> dict[tuple[str, float], float]:
    """Tune arms at one size with each wanted learning rate; arms with the same rate share a sweep."""
    losses = dict.fromkeys(wanted, math.inf)
    for lr in dict.fromkeys(lr for _, lr in wanted):
        texts = {arm_text(config, arms[name], chosen.distill): name for name, rate in wanted if rate == lr}
        first = arms[next(iter(texts.values()))]
        run = sweep_config(config, first, list(texts), base, lr, [spec], search=True)
        try:
            sweep(run)
        except Diverged as error:  # rules this learning rate out for the arms that diverged
            why.append(str(error))
        for one in current_descendants(store, run.name):
            if one.metadata["row"]["arm"] in texts:
                losses[texts[one.metadata["row"]["arm"]], lr] = one.metadata["row"]["val_loss"]
    return losses


def search_rates(
    owners: Iterable[Owner],
    grid: Sequence[float],
    extensions: int,
    measure: Callable[[Sequence[tuple[Owner, float]]], Mapping[tuple[Owner, float], float]],
) -> dict[Owner, Losses]:
    """Measure every rate of the grid for every owner, and more rates while an owner's best one is at the border.

    A rate that diverged counts as measured, so a best rate next to it is not at the border.

    Args:
        extensions: Rates added at most for one owner.
        measure: Trains pairs of owner and rate, all in one call so that they can run in parallel, and returns the
            validation loss of each, infinite if it diverged.
    """
    found: dict[Owner, Losses] = {owner: {} for owner in owners}
    wanted = [(owner, lr) for lr in grid for owner in found]
    while wanted:
        for (owner, lr), loss in measure(wanted).items():
            found[owner][lr] = loss
        open_ended = {owner: losses for owner, losses in found.items() if len(losses) < len(grid) + extensions}
        wanted = [(owner, rate) for owner, losses in open_ended.items() if (rate := next_rate(losses)) is not None]
    return found


def next_rate(losses: Mapping[float, float]) -> float | None:
    """Return the rate beyond the best one if that is at the border of what was measured; else None.

    It is as far from the border as the border from its neighbour, in ratio, and has three digits as in names.
    """
    rates = sorted(losses)
    if len(rates) < 2 or not at_border(_best(losses), rates):
        return None
    edge, neighbour = (rates[-1], rates[-2]) if _best(losses) == rates[-1] else (rates[0], rates[1])
    return float(f"{edge * edge / neighbour:.3g}")


def best_rate(losses: Mapping[float, float], why: Sequence[str]) -> float:
    """Return the rate of the smallest loss.

    Args:
        why: Why rates diverged, for the error.

    Raises:
        UserError: every rate diverged.
    """
    best = _best(losses)
    if math.isinf(losses[best]):
        raise UserError(f"none of the learning rates {', '.join(f'{lr:g}' for lr in sorted(losses))} works: {why[0]}")
    return best


def _best(losses: Mapping[float, float]) -> float:
    return min(losses, key=lambda lr: losses[lr])

"""The configurations of a benchmark's distillations, extractions and sweeps, and their names in the store."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from ray_learngene.compare.arms import ArmPlan, Distillation
from ray_learngene.config import BenchConfig, Config, DistillationConfig, DistillConfig, ExtractConfig, SweepConfig
from ray_learngene.errors import UserError
from ray_learngene.models.costs import macs
from ray_learngene.models.specs import Spec, first_message, preset
from ray_learngene.store.manifest import shortened


def lr_text(lr: float) -> str:
    """Format a learning rate for a name."""
    return f"{lr:.3g}".replace("+", "")


def learngene_name(config: BenchConfig, label: str, lr: float, seed: int | str) -> str:
    """Return the name of a learngene in the store; every learning rate has its own."""
    return f"{config.name}-{label}-lr{lr_text(lr)}-s{seed}"


def distill_config(
    config: BenchConfig, distillation: Distillation, lr: float, seed: int, *, search: bool = False
) -> DistillConfig:
    """Configure one single-process distillation; for a search, a shorter one validated on held-out training images."""
    name = learngene_name(config, distillation.label, lr, seed)
    own = json.loads(distillation.settings)
    changes: dict[str, Any] = {"name": name, "epochs": distillation.epochs}
    if search:
        changes = {"name": f"{name}-search", **_search(config, distillation.epochs)}
    warmup = min(own.get("warmup_epochs", config.warmup_epochs), changes["epochs"] / 2)
    values: dict[str, Any] = {
        **_shared(config, DistillConfig),
        **own,
        "preset": config.preset,
        "width": distillation.spec.width,
        "depth": distillation.spec.depth,
        "method": distillation.method,
        "lr": lr,
        "seed": seed,
        "workers": 0,
        **changes,
        "warmup_epochs": warmup,
    }
    try:
        return DistillConfig(**values)
    except ValidationError as error:  # the recipe was checked before, so it is a setting of the arm's own
        raise UserError(f"{distillation.label}: {first_message(error)}") from None


def extract_configs(config: BenchConfig, row: ArmPlan, lrs: Mapping[Distillation, float]) -> Iterator[ExtractConfig]:
    """Yield the extractions of the arm's learngenes from plain models, distilled at these learning rates."""
    if not row.extracted:
        return
    for spec, distillation in {row.distillations[spec]: (spec, row.distillations[spec]) for spec in row.specs}.values():
        assert distillation is not None
        label = _label(row).format(width=spec.width, depth=spec.depth)
        for seed in range(config.seed, config.seed + config.seeds):
            yield ExtractConfig(
                name=learngene_name(config, label, lrs[distillation], seed),
                store=config.store,
                store_patience=config.store_patience,
                source=f"store:learngenes/{learngene_name(config, distillation.label, lrs[distillation], seed)}",
                method=row.arm.method,
            )


def arm_text(config: BenchConfig, row: ArmPlan, lrs: Mapping[Distillation, float]) -> str:
    """Write the arm for a sweep, with a learngene for every seed (and size), distilled at these learning rates."""
    distillation = row.distillations[row.specs[0]]
    if distillation is None:
        return row.arm.method
    return f"{row.arm.method}@{learngene_name(config, _label(row), lrs[distillation], '{seed}')}"


def _label(row: ArmPlan) -> str:
    """Return the label of the arm's learngenes, with placeholders for width and depth if sizes have their own."""
    made = {row.distillations[spec] for spec in row.specs}
    labels = {one.label for one in made if one is not None}
    several = len(labels) > 1
    if row.extracted:
        return f"{row.name}-w{{width}}-d{{depth}}" if several else row.name
    return re.sub(r"w\d+-d\d+$", "w{width}-d{depth}", min(labels)) if several else min(labels)


def tuning_epochs(config: BenchConfig, row: ArmPlan) -> int:
    """Return the epochs of each descendant.

    With `distilled` all sizes together cost the FLOPs of a learngene arm: those of an auxiliary model of full depth,
    plus those of tuning.
    """
    if row.arm.tune != "distilled":
        return {"short": config.tune_epochs, "full": row.arm.epochs or config.epochs}[row.arm.tune]
    auxiliary = preset_of(config, depth=config.depth)
    once = config.epochs * macs(auxiliary) / sum(macs(spec) for spec in row.distillations)
    return max(1, round(once + config.tune_epochs))


def learning_rates(config: BenchConfig, row: ArmPlan) -> tuple[float, ...]:
    """Return the learning rates to search for the arm's descendants."""
    return config.tune_lrs if row.arm.tune == "short" else config.lrs


def preset_of(config: BenchConfig, **changes: Any) -> Spec:
    """Return the preset of a benchmark for its images, with some fields changed."""
    return preset(config.preset, image=config.image_size, channels=config.in_chans, **changes)


def at_border(lr: float, rates: Sequence[float]) -> bool:
    """Check whether a rate is the smallest or largest of several that were tried."""
    return len(rates) > 1 and lr in (min(rates), max(rates))


def sweep_config(
    config: BenchConfig,
    first: ArmPlan,
    arms: Sequence[str],
    learngene: str,
    lr: float,
    specs: Sequence[Spec],
    search: bool,
) -> SweepConfig:
    """Configure a sweep of arms (as `arm_text` writes them) with the tuning of `first`, at sizes of one width."""
    tune = first.arm.tune
    other = {"arms", "ancestry", *(() if tune == "distilled" else DistillationConfig.model_fields)}
    names = {name: value for name, value in _shared(config, SweepConfig).items() if name not in other}
    epochs = tuning_epochs(config, first)
    changes: dict[str, Any] = {"seeds": config.seeds}
    if search:
        short = {"epochs": epochs, "warmup_epochs": 0} if tune == "short" else {}
        changes = {**_search(config, epochs), "seeds": 1, **short}
    depths = ",".join(str(spec.depth) for spec in specs)
    kind = f"{'search' if search else 'final'}-{tune}-e{epochs}"
    size = f"w{specs[0].width}-d{depths.replace(',', '.')}"
    return SweepConfig(
        **{
            **names,
            "epochs": epochs,
            "warmup_epochs": 0 if tune == "short" else min(config.warmup_epochs, epochs / 2),
            "name": shortened(f"{config.name}{config.suffix}-{kind}-{size}-lr{lr_text(lr)}"),
            "learngene": learngene,
            "arms": tuple(arms),
            "scratch": "epochs",  # the table charges every arm for all that it costs
            "widths": str(specs[0].width),
            "depths": depths,
            "lr": lr,
            "ancestry": config.ancestry if tune == "distilled" else None,
            "min_lr": min(config.min_lr, lr),
            **changes,
        }
    )


def search_epochs(config: BenchConfig, epochs: int) -> int:
    """Return the length of a search that decides runs of so many epochs: half of it, unless the recipe says it."""
    return config.search_epochs or max(1, math.ceil(epochs / 2))


def _search(config: BenchConfig, decides: int) -> dict[str, Any]:
    """Return the settings of a search; it never chooses by the images that the benchmark reports."""
    epochs = search_epochs(config, decides)
    return {
        "validate_on": "holdout",
        "epochs": epochs,
        "warmup_epochs": min(config.warmup_epochs, epochs / 2),
    }


def _shared(config: BenchConfig, cls: type[Config]) -> dict[str, Any]:
    """Return the given settings of the benchmark that a command's configuration also has."""
    return {name: getattr(config, name) for name in cls.model_fields if name in config.model_fields_set}

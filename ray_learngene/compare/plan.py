"""The plan of a benchmark: every arm's learngenes and possible sizes, and the configurations of its runs."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from ray_learngene.config import (
    BenchArm,
    BenchConfig,
    Config,
    DistillationConfig,
    DistillConfig,
    ExtractConfig,
    SweepConfig,
)
from ray_learngene.distillation.distill import check_depth
from ray_learngene.errors import UserError
from ray_learngene.methods.base import Method
from ray_learngene.methods.pretrained import Pretrained
from ray_learngene.methods.registry import create_method
from ray_learngene.models.costs import macs
from ray_learngene.models.sizes import parse_numbers
from ray_learngene.models.specs import Spec, first_message, preset
from ray_learngene.provenance import fingerprint
from ray_learngene.store.manifest import folder_of, shortened

_PLAIN = Pretrained.name  # the method whose learngene is a whole model


@dataclass(frozen=True)
class Distillation:
    """A distillation without its seed and learning rate; arms that start from the same model share it.

    Attributes:
        family: Distillations of one family share a learning rate search: an arm, or the plain models of one source.
        settings: Settings that differ from the recipe's, as JSON.
    """

    label: str
    method: str
    spec: Spec
    family: str
    epochs: int
    settings: str = "{}"


@dataclass(frozen=True)
class Row:
    """One arm with everything derived from its configuration.

    Attributes:
        distillations: By the descendant's size; None if the method needs no learngene.
        extracted: Whether another method extracts the learngene from the distilled model.
        refused: By size, why the arm cannot make it.
    """

    name: str
    arm: BenchArm
    method: Method
    distillations: dict[Spec, Distillation | None]
    extracted: bool
    refused: dict[Spec, str]

    @property
    def specs(self) -> list[Spec]:
        """The sizes that the arm can make."""
        return [spec for spec in self.distillations if spec not in self.refused]

    @property
    def per_size(self) -> bool:
        """Whether every size has its own learngene, which then counts as part of that size's cost."""
        return (self.arm.source or self.method.source) == "each" and self.method.needs_learngene

    @property
    def middle(self) -> Spec:
        """The size of the learning rate search."""
        return self.specs[len(self.specs) // 2]


def sizes(config: BenchConfig, classes: int) -> list[Spec]:
    """Return the descendants' sizes, smallest first."""
    base = preset(config.preset, image=config.image_size, classes=classes)
    widths = parse_numbers("widths", config.widths) if config.widths else [base.width]
    return [
        preset(config.preset, image=config.image_size, classes=classes, width=width, depth=depth)
        for width in widths
        for depth in parse_numbers("depths", config.depths)
    ]


def rows(config: BenchConfig, classes: int) -> list[Row]:
    """Plan every arm; expand an untrained learngene to every size, so that errors show before training.

    Raises:
        UserError: a method or size is invalid, or an arm can make none of the sizes.
    """
    _check_names(config)
    specs = sizes(config, classes)
    auxiliary = preset(config.preset, image=config.image_size, classes=classes, depth=config.depth)
    made = [_row(config, name, arm, specs, auxiliary) for name, arm in config.arms.items()]
    _check_distinct(config, made)
    return made


def _check_names(config: BenchConfig) -> None:
    for name in config.arms:
        folder_of("learngene", f"{config.name}-{name}")  # raises if the name is invalid in a store
        if name.startswith("model-"):
            raise UserError(f"arm {name!r}: names that begin with model- are for plain models; choose another")
        if re.fullmatch(rf"{re.escape(config.reference)}-x\d+", name):
            raise UserError(f"arm {name!r}: that is the reference's name in a longer training; choose another")


def _check_distinct(config: BenchConfig, made: Sequence[Row]) -> None:
    """Check that no two arms train the same, even if they are written differently."""
    for number, row in enumerate(made):
        for other in made[:number]:
            if _trained(config, row) == _trained(config, other):
                raise UserError(f"arm {row.name!r} is the same as {other.name!r}: give each arm once")


def _trained(config: BenchConfig, row: Row) -> tuple[Any, ...]:
    """Return everything that determines an arm's results, with defaults filled in."""
    source, epochs = row.arm.source or row.method.source, row.arm.epochs or config.epochs
    return row.method, source, row.arm.tune, epochs, row.arm.settings, row.arm.equal and row.arm.epochs is None


def _row(config: BenchConfig, name: str, arm: BenchArm, specs: list[Spec], auxiliary: Spec) -> Row:
    try:
        method = create_method(arm.method)
    except UserError as error:
        raise UserError(f"arm {name!r}: {error}") from None
    distillations: dict[Spec, Distillation | None] = dict.fromkeys(specs)
    source = arm.source or method.source
    if arm.source and not method.needs_learngene:
        raise UserError(f"arm {name!r}: {method.name!r} starts from no model, leave out its source")
    if arm.settings and not method.needs_learngene:
        raise UserError(f"arm {name!r}: {method.name!r} is not distilled, leave out its settings")
    if method.needs_learngene:
        distillations = {spec: _distillation(config, name, arm, source, spec, specs, auxiliary) for spec in specs}
    extracted = method.needs_learngene and source != "auxiliary" and method.name != _PLAIN
    for distillation in filter(None, set(distillations.values())):
        distill_config(config, distillation, config.lrs[0], config.seed)  # raises if a setting is wrong
    refused = _refused(method, distillations, extracted)
    if len(refused) == len(specs):
        raise UserError(f"arm {name!r} can make none of the sizes: {refused[specs[0]]}")
    return Row(name, arm, method, distillations, extracted, refused)


def _distillation(
    config: BenchConfig, name: str, arm: BenchArm, source: str, spec: Spec, specs: list[Spec], auxiliary: Spec
) -> Distillation:
    epochs, settings = arm.epochs or config.epochs, json.dumps(arm.settings, sort_keys=True)
    if source == "auxiliary":
        return Distillation(name, arm.method, auxiliary, name, epochs, settings)
    # the largest plain model is as deep as the auxiliary models, so that all learngenes come from the same depth
    largest = auxiliary.replace(depth=max(auxiliary.depth, specs[-1].depth))
    chosen = {"largest": largest, "smallest": specs[0], "each": spec}[source]
    kind = "model" if epochs == config.epochs else f"model-e{epochs}"
    if arm.settings:
        kind += f"-{fingerprint(arm.settings)[:6]}"
    label = f"{kind}-w{chosen.width}-d{chosen.depth}"
    return Distillation(label, _PLAIN, chosen, f"{kind}-{source}", epochs, settings)


def _refused(method: Method, distillations: dict[Spec, Distillation | None], extracted: bool) -> dict[Spec, str]:
    refused = {}
    learngenes: dict[Distillation, Any] = {}
    for spec, distillation in distillations.items():
        try:
            if distillation is not None and distillation not in learngenes:
                made = create_method(distillation.method)
                auxiliary = made.auxiliary(distillation.spec)
                check_depth(auxiliary, distillation.spec.depth, distillation.method)
                learngenes[distillation] = (method if extracted else made).extract(auxiliary)
            method.expand(learngenes[distillation] if distillation else None, spec)
        except UserError as error:
            refused[spec] = str(error)
    return refused


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


def extract_configs(config: BenchConfig, row: Row, lrs: Mapping[Distillation, float]) -> Iterator[ExtractConfig]:
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


def arm_text(config: BenchConfig, row: Row, lrs: Mapping[Distillation, float]) -> str:
    """Write the arm for a sweep, with a learngene for every seed (and size), distilled at these learning rates."""
    distillation = row.distillations[row.specs[0]]
    if distillation is None:
        return row.arm.method
    return f"{row.arm.method}@{learngene_name(config, _label(row), lrs[distillation], '{seed}')}"


def _label(row: Row) -> str:
    """Return the label of the arm's learngenes, with placeholders for width and depth if sizes have their own."""
    made = {row.distillations[spec] for spec in row.specs}
    labels = {one.label for one in made if one is not None}
    several = len(labels) > 1
    if row.extracted:
        return f"{row.name}-w{{width}}-d{{depth}}" if several else row.name
    return re.sub(r"w\d+-d\d+$", "w{width}-d{depth}", min(labels)) if several else min(labels)


def tuning_epochs(config: BenchConfig, row: Row) -> int:
    """Return the epochs of each descendant.

    With `distilled` all sizes together cost the FLOPs of a learngene arm: those of an auxiliary model of full depth,
    plus those of tuning.
    """
    if row.arm.tune != "distilled":
        return {"short": config.tune_epochs, "full": row.arm.epochs or config.epochs}[row.arm.tune]
    auxiliary = preset(config.preset, image=config.image_size, depth=config.depth)
    once = config.epochs * macs(auxiliary) / sum(macs(spec) for spec in row.distillations)
    return max(1, round(once + config.tune_epochs))


def learning_rates(config: BenchConfig, row: Row) -> tuple[float, ...]:
    """Return the learning rates to search for the arm's descendants."""
    return config.tune_lrs if row.arm.tune == "short" else config.lrs


def sweep_config(
    config: BenchConfig, first: Row, arms: Sequence[str], learngene: str, lr: float, specs: Sequence[Spec], search: bool
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
            "name": shortened(f"{config.name}-{kind}-{size}-lr{lr_text(lr)}"),
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

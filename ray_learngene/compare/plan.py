"""The plan of a benchmark: every arm's learngenes and possible sizes."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from ray_learngene.compare.arms import ArmPlan, Distillation
from ray_learngene.compare.runs import distill_config, preset_of
from ray_learngene.config import BenchArm, BenchConfig
from ray_learngene.config.numbers import parse_numbers
from ray_learngene.distillation.distill import check_depth
from ray_learngene.errors import UserError
from ray_learngene.methods.base import Method
from ray_learngene.methods.pretrained import Pretrained
from ray_learngene.methods.registry import create_method
from ray_learngene.models.specs import Spec
from ray_learngene.provenance import fingerprint
from ray_learngene.store.manifest import folder_of

_PLAIN = Pretrained.name  # the method whose learngene is a whole model


def sizes(config: BenchConfig, classes: int) -> list[Spec]:
    """Return the descendants' sizes, smallest first."""
    base = preset_of(config, classes=classes)
    widths = parse_numbers("widths", config.widths) if config.widths else [base.width]
    return [
        preset_of(config, classes=classes, width=width, depth=depth)
        for width in widths
        for depth in parse_numbers("depths", config.depths)
    ]


def plan_arms(config: BenchConfig, classes: int) -> list[ArmPlan]:
    """Plan every arm; expand an untrained learngene to every size, so that errors show before training.

    Raises:
        UserError: a method or size is invalid, or an arm can make none of the sizes.
    """
    _check_names(config)
    specs = sizes(config, classes)
    auxiliary = preset_of(config, classes=classes, depth=config.depth)
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


def _check_distinct(config: BenchConfig, made: Sequence[ArmPlan]) -> None:
    """Check that no two arms train the same, even if they are written differently."""
    for number, row in enumerate(made):
        for other in made[:number]:
            if _trained(config, row) == _trained(config, other):
                raise UserError(f"arm {row.name!r} is the same as {other.name!r}: give each arm once")


def _trained(config: BenchConfig, row: ArmPlan) -> tuple[Any, ...]:
    """Return everything that determines an arm's results, with defaults filled in."""
    source, epochs = row.arm.source or row.method.source, row.arm.epochs or config.epochs
    return row.method, source, row.arm.tune, epochs, row.arm.settings, row.arm.equal and row.arm.epochs is None


def _row(config: BenchConfig, name: str, arm: BenchArm, specs: list[Spec], auxiliary: Spec) -> ArmPlan:
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
    return ArmPlan(name, arm, method, distillations, extracted, refused)


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

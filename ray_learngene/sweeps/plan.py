"""Plan a sweep, before anything is trained."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

from ray_learngene.ancestry.model import load_ancestry
from ray_learngene.config import PlanConfig, SweepConfig, load_config
from ray_learngene.data.image_set import ImageSets
from ray_learngene.data.open import open_image_sets
from ray_learngene.delivery.latency import Latency
from ray_learngene.errors import UserError
from ray_learngene.methods.base import Learngene
from ray_learngene.models.budgets import Budget
from ray_learngene.models.sizes import student_spec
from ray_learngene.models.specs import Spec
from ray_learngene.progress import counted
from ray_learngene.store.learngenes import StoredLearngene
from ray_learngene.store.store import Store
from ray_learngene.store.sweeps import PLAN, sweep_file
from ray_learngene.sweeps.arms import Arm
from ray_learngene.sweeps.calibration import SweepCost, calibrate
from ray_learngene.sweeps.equal_cost import equal_cost_epochs
from ray_learngene.sweeps.latency import Meter, measured_latency
from ray_learngene.sweeps.prepare import prepare
from ray_learngene.sweeps.selection import (
    Selection,
    check_texts,
    load_arms,
    load_learngene,
    parse_arms,
    select,
)
from ray_learngene.training.flops import TRAINING_PASSES, forward_flops
from ray_learngene.training.optimizers import traits_of
from ray_learngene.training.pace import DistillationCost


@dataclass(frozen=True)
class Plan:
    """What a sweep would train.

    Attributes:
        latencies: Of every spec to train; of sizes without a learngene: of those that a budget of latency chose.
        arms: How many there are; 0 without a learngene, as nothing is trained then.
        descendants: How many there are, all arms, seeds and learning rates together.
        steps: Optimizer steps of each; None where no image set was given.
        scratch_epochs: Epochs of arms without a learngene, if they train at equal cost and an image set was given.
        outside: Why sizes lie outside what their learngene was trained for.
        flops: Training FLOPs of all together, and of fitting where a method does so (of one image for each, where no
            image set was given).
        learngene_seconds: What the learngene has cost; None where it does not say.
        cost: Hours and money; None without calibration.
    """

    selection: Selection
    latencies: dict[Spec, Latency]
    arms: int
    descendants: int
    steps: int | None
    flops: float
    scratch_epochs: dict[Spec, int]
    outside: tuple[str, ...]
    learngene_seconds: float | None = None
    cost: SweepCost | None = None


def plan_student(config: PlanConfig) -> Plan:
    """Select among the sizes of a preset or of a timm entry point, without a learngene.

    Raises:
        UserError: timm has no such size, or a budget that nothing meets (says by how much).
    """
    check_texts(config)
    classes = len(open_image_sets(config).train.classes) if config.data else None
    source = student_spec(config, classes=classes, image=config.image_size)
    measure = measured_latency(config)
    selection = select(config, source, source.classes, measure, Store.of(config))
    timed = any(Budget.parse(text).needs_latency for text in config.budgets)
    latencies = {choice.spec: measure(choice.spec) for choice in selection.specs if timed}
    return Plan(selection, latencies, 0, 0, None, 0.0, {}, ())


def plan(
    config: PlanConfig, distillation: DistillationCost | None = None, planned: StoredLearngene | None = None
) -> Plan:
    """Select the specs as a sweep does, and add up what they cost.

    Args:
        distillation: What the distillation of the learngene will cost.
        planned: Stands for the learngene until it is distilled.

    Raises:
        UserError: a budget that nothing meets (says by how much), or whatever a sweep would refuse.
    """
    settings = sweep_settings(config)
    store = Store.of(config)
    store.check(write=bool(config.name and config.calibrate))
    stored = planned or load_learngene(config, store)
    arms = parse_arms(config, stored.learngene)
    sets = open_image_sets(config) if config.data else None
    per_epoch = _steps_per_epoch(config, sets) if sets else None
    measure = measured_latency(config)
    classes = len(sets.train.classes) if sets else stored.learngene.spec.classes
    selection = select(config, stored.learngene.spec, classes, measure, store)
    learngenes = load_arms(config, store, arms, selection, stored, range(config.seed, config.seed + config.seeds))
    epochs: dict[Spec, int] = {}
    if per_epoch and config.scratch != "epochs" and not all(arm.learngene for arm in arms):
        teacher = load_ancestry(config.ancestry, store) if config.ancestry else None
        epochs = equal_cost_epochs(
            config,
            arms,
            learngenes,
            store,
            steps_per_epoch=per_epoch,
            costs={choice.spec: choice.costs for choice in selection.specs},
            teacher_flops=forward_flops(teacher, selection.specs[0].spec.image) if teacher else 0,
        )
    macs = 0.0
    outside: list[str] = []
    for arm in arms:
        for choice in selection.specs:
            name = arm.learngene_of(choice.spec, config.seed)
            learngene = learngenes[name].learngene if name else None
            if note := arm.method.outside(learngene, choice.spec):
                outside.append(note)
            each = config.epochs if arm.learngene else epochs.get(choice.spec, config.epochs)
            images = _images(config, arm, choice.spec, learngene, per_epoch * each) if per_epoch else 1
            macs += choice.costs["macs"] * images
    per_arm = config.seeds * max(1, config.lr_search)
    # it refuses what a sweep would before it times anything
    cost = _calibrate(config, settings, store, measure, distillation, planned) if settings else None
    return Plan(
        selection,
        {choice.spec: measure(choice.spec) for choice in selection.specs},
        len(arms),
        len(selection.specs) * len(arms) * per_arm,
        per_epoch and per_epoch * config.epochs,
        2.0 * TRAINING_PASSES * macs * per_arm,
        epochs,
        tuple(dict.fromkeys(outside)),
        None if planned else stored.facts()["learngene_seconds"],
        cost,
    )


def _steps_per_epoch(config: PlanConfig, sets: ImageSets) -> int:
    images = len(sets.train)
    if images < config.batch_size:
        raise UserError(f"{config.data} has {counted(images, 'training image')}, less than a batch: lower --batch-size")
    return images // config.batch_size


def _images(config: PlanConfig, arm: Arm, spec: Spec, learngene: Learngene | None, steps: int) -> int:
    """Return the images that the training of a descendant reads, with the fit to its size."""
    adapter = arm.method.adapter(learngene, spec)
    return (steps + (adapter.fit_steps if adapter else 0)) * config.batch_size


def sweep_settings(config: PlanConfig) -> SweepConfig | None:
    """Return the settings of the sweep to calibrate; None without calibration.

    Raises:
        UserError: a sweep would refuse them before it reads anything.
    """
    check_texts(config)
    traits_of(config)
    if config.name:
        sweep_file(config.name, PLAN)  # refuses a name that no store can hold
    if not config.calibrate:
        return None
    given = {name: getattr(config, name) for name in SweepConfig.model_fields if name in config.model_fields_set}
    return load_config(SweepConfig, {**given, "name": config.name or "plan"})


def _calibrate(
    config: PlanConfig,
    settings: SweepConfig,
    store: Store,
    measure: Meter,
    distillation: DistillationCost | None,
    planned: StoredLearngene | None,
) -> SweepCost:
    """Measure what the sweep will cost; its plan is kept in the store if the sweep has a name."""
    prepared = prepare(settings, store, measure, planned)
    cost = replace(calibrate(prepared.inputs, prepared.wanted, config.price_per_hour), distillation=distillation)
    if config.name:
        store.write_text(sweep_file(config.name, PLAN), json.dumps(cost.as_json(), indent=2) + "\n")
    return cost

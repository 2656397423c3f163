"""Prepare a sweep: read and check everything that its trials need, before the first of them."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, Literal

from ray_learngene.ancestry.classes import match_classes
from ray_learngene.ancestry.model import Ancestry, load_ancestry
from ray_learngene.ancestry.origin import log_license, stored_origin
from ray_learngene.config import SweepConfig
from ray_learngene.config.decides import require_same
from ray_learngene.data.class_names import order_of
from ray_learngene.data.image_set import ImageSets
from ray_learngene.data.pipeline import ImagePipeline, checked_image_sets
from ray_learngene.methods.base import Learngene
from ray_learngene.models.build import build
from ray_learngene.models.checkpointing import checkpoint_gradients
from ray_learngene.models.preprocessing import Preprocessing
from ray_learngene.models.specs import Spec
from ray_learngene.provenance import provenance, publishable
from ray_learngene.store.learngenes import StoredLearngene
from ray_learngene.store.store import Store
from ray_learngene.store.sweeps import read_settings
from ray_learngene.sweeps.arms import Arm
from ray_learngene.sweeps.descendant import decisive_settings
from ray_learngene.sweeps.equal_cost import equal_cost_epochs
from ray_learngene.sweeps.latency import Meter, latency_meter
from ray_learngene.sweeps.results import earlier_rows
from ray_learngene.sweeps.selection import (
    Selection,
    cost_columns,
    load_arms,
    load_learngene,
    parse_arms,
    require_reach,
    select,
)
from ray_learngene.sweeps.trial import Trial
from ray_learngene.sweeps.trials import SweepInputs
from ray_learngene.training.flops import forward_flops

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prepared:
    """All that a sweep decides before its first trial.

    Attributes:
        settings: What its sweep.json will say.
        before: Rows that earlier runs of it settled.
        wanted: Its trials, the largest sizes first: the longest trials must not start last.
    """

    inputs: SweepInputs
    settings: dict[str, Any]
    before: list[dict[str, Any]]
    wanted: list[Trial]


def prepare(
    config: SweepConfig, store: Store, known: Meter | None = None, planned: StoredLearngene | None = None
) -> Prepared:
    """Read and check everything that trials need.

    Args:
        known: Latencies that are known already.
        planned: Stands for the learngene until it is distilled.
    """
    stored = planned or load_learngene(config, store)
    arms = parse_arms(config, stored.learngene)
    require_reach(config, store, arms, stored)
    preprocessing = _preprocessing(config, stored.learngene)
    config = config.model_copy(update={"interpolation": preprocessing.interpolation})  # in training as in evaluation
    images = _images(config, preprocessing)
    _tell_classes(config, stored.learngene, images)
    ancestry = _teacher(config, images, store)
    earlier = read_settings(store, config.name)
    common = _common_settings(config, images, ancestry, arms, stored)
    _refuse_another(store, config.name, earlier, common)
    with nullcontext(known) if known else latency_meter(config) as measure:
        selection = select(config, stored.learngene.spec, len(images.train.classes), measure, store)
        # before anything is timed
        learngenes = load_arms(config, store, arms, selection, stored, _seeds(config))
        if config.grad_checkpointing:
            checkpoint_gradients(build(selection.specs[0].spec))  # refuses a model without blocks
        costs = _costs(config, selection, measure)
    config = config.model_copy(update={"scratch": _scratch(config, earlier)})
    inputs = SweepInputs(config, images, ancestry, store, learngenes, costs)
    before = earlier_rows(store, config.name)
    wanted = _trials(inputs, selection, arms, before)
    for each in {one.manifest.name: one for trial in wanted if (one := inputs.learngene(trial))}.values():
        log_license(f"learngene {each.manifest.name}", stored_origin(each.manifest, store))
    settings = {
        "format": 1,
        "name": config.name,
        "common": common,
        "budgets": {text: int(choice.costs["params"]) for text, choice in selection.chosen.items()},
        "scratch": config.scratch,
        "config": publishable(config.model_dump(mode="json")),
        **provenance(),
    }
    return Prepared(inputs, settings, before, wanted)


def _preprocessing(config: SweepConfig, learngene: Learngene) -> Preprocessing:
    """Return the learngene's preprocessing, with the configuration's changes."""
    return Preprocessing(
        **{
            **learngene.preprocessing,
            "image_size": learngene.spec.image.changed(config.image_size),
            **config.model_dump(include={"crop_pct", "interpolation"} & config.model_fields_set),
        }
    )


def _images(config: SweepConfig, preprocessing: Preprocessing) -> ImagePipeline:
    images = ImagePipeline.of(checked_image_sets(config), preprocessing, config)
    images.training_batches(config)  # refuses what does not divide
    return images


def _tell_classes(config: SweepConfig, learngene: Learngene, images: ImagePipeline) -> None:
    """Say what becomes of a head whose classes are not those of the images."""
    if not learngene.spec.classes or learngene.labels == images.train.classes:
        return
    name, data = config.learngene, config.data
    if order_of(learngene.labels, images.train.classes) is not None:
        log.info(f"learngene {name} has the classes of --data {data} in another order: mapped by name")
    else:
        log.info(f"learngene {name} has other classes than --data {data}: descendants begin with a new head")


def _teacher(config: SweepConfig, images: ImagePipeline, store: Store) -> Ancestry | None:
    """Return the teacher of the descendants, if they have one."""
    if not config.ancestry:
        return None
    ancestry = load_ancestry(config.ancestry, store)
    sets = ImageSets(images.train, images.val)
    match_classes(ancestry, config.ancestry, config.data, sets, unreadable=config.unreadable)
    ancestry.accept(images.preprocessing.mean, images.preprocessing.std)
    return ancestry


def _seeds(config: SweepConfig) -> range:
    return range(config.seed, config.seed + config.seeds)


def _costs(config: SweepConfig, selection: Selection, measure: Meter) -> dict[Spec, dict[str, Any]]:
    """Return the columns of the results table that say what a size costs."""
    micro_batch = config.batch_size // config.accumulation
    return {
        one.spec: cost_columns(one.spec, measure(one.spec), micro_batch, checkpointed=config.grad_checkpointing)
        for one in selection.specs
    }


def _trials(
    inputs: SweepInputs, selection: Selection, arms: Sequence[Arm], before: Sequence[dict[str, Any]]
) -> list[Trial]:
    """Return the trials of all sizes, seeds and arms."""
    config, epochs = inputs.config, _scratch_epochs(inputs, arms, before)
    return [
        _as_before(
            Trial(arm, choice.spec, seed, config.lr, None if arm.learngene else epochs.get(choice.spec)), inputs, before
        )
        for choice in selection.specs
        for seed in _seeds(config)
        for arm in arms
    ]


def _scratch(config: SweepConfig, earlier: Mapping[str, Any] | None) -> Literal["cost", "epochs"]:
    """Return how long arms without a learngene train: as given, as the sweep began, or at equal cost."""
    if config.scratch:
        return config.scratch
    return "epochs" if earlier is not None and earlier["scratch"] == "epochs" else "cost"


def _scratch_epochs(inputs: SweepInputs, arms: Sequence[Arm], before: Sequence[dict[str, Any]]) -> dict[Spec, int]:
    """Return the epochs by spec of arms without a learngene; empty where they are those of the sweep."""
    config, images, teacher = inputs.config, inputs.images, inputs.ancestry
    if config.scratch != "cost":
        return {}
    return equal_cost_epochs(
        config,
        arms,
        inputs.learngenes,
        inputs.store,
        steps_per_epoch=len(images.train) // config.batch_size,
        costs=inputs.costs,
        teacher_flops=forward_flops(teacher, images.preprocessing.image_size) if teacher else 0,
        earlier={
            (row["image"], row["params"]) for row in before if row["status"] == "finished" and row.get("learngene")
        },
    )


def _as_before(trial: Trial, inputs: SweepInputs, before: Sequence[dict[str, Any]]) -> Trial:
    """Return a trial at equal cost, with the epochs of the finished one if there is one.

    Sizes may have been added since.
    """
    if trial.epochs is None:
        return trial
    for row in before:
        if (row["arm"], row["seed"]) == (trial.arm.text, trial.seed) and row["epochs"] > inputs.config.epochs:
            same = replace(trial, lr=row["lr"], epochs=row["epochs"])
            if inputs.descendant(same).name == row["descendant"]:
                return replace(trial, epochs=row["epochs"])
    return trial


def _common_settings(
    config: SweepConfig,
    images: ImagePipeline,
    ancestry: Ancestry | None,
    arms: Sequence[Arm],
    stored: StoredLearngene,
) -> dict[str, Any]:
    """Return what all descendants of a sweep have in common.

    Sizes, arms, seeds and learning rates searched may be added later.
    """
    expanded = {arm.learngene for arm in arms}
    return {
        # arms that all name learngenes of their own only share its preprocessing
        **({"learngene": stored.manifest.version} if stored.manifest.name in expanded else {}),
        "preprocessing": images.preprocessing.model_dump(mode="json"),
        "data": images.train.fingerprint,
        "validation": images.val.fingerprint,
        **decisive_settings(config, ancestry, images.preprocessing.image_size),
        **({} if config.lr_search else {"lr": config.lr}),
    }


def _refuse_another(store: Store, name: str, earlier: Mapping[str, Any] | None, now: dict[str, Any]) -> None:
    """Refuse a sweep with other common settings: its descendants would not be comparable.

    The learngene of earlier arms stays one of the settings, even if no arm uses it now.
    """
    if earlier is None:
        return
    before = earlier["common"]
    comparable = "validation" in before
    for one, other in ((before, now), (now, before)):
        # arms that are expanded from it may be added later; an earlier version did not say what it validated on
        for key in {"learngene", "validation"} & other.keys():
            one.setdefault(key, other[key])
    require_same(before, now, f"the sweep {name!r} in {store.uri}", "")
    if not comparable:
        log.warning(
            f"the sweep {name} was begun by an earlier version: take care that its validation images are the same"
        )

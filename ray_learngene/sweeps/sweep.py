"""A sweep: train many descendants of one learngene in parallel, on Ray Tune.

learngene sweep --learngene digits --name digits --data digits --budgets "params<=150k" "params<=300k" --epochs 5
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import pandas

from ray_learngene.ancestry.classes import match_classes
from ray_learngene.ancestry.model import Ancestry, load_ancestry
from ray_learngene.ancestry.origin import log_license, stored_origin
from ray_learngene.config import SweepConfig
from ray_learngene.config.decides import require_same
from ray_learngene.data.class_names import order_of
from ray_learngene.data.image_set import ImageSets
from ray_learngene.data.pipeline import ImagePipeline, checked_image_sets
from ray_learngene.delivery.export import require_packages
from ray_learngene.errors import Diverged, RunError, UserError
from ray_learngene.methods.base import Learngene
from ray_learngene.models.build import build
from ray_learngene.models.checkpointing import checkpoint_gradients
from ray_learngene.models.compile import require_compiler
from ray_learngene.models.preprocessing import Preprocessing
from ray_learngene.models.specs import Spec
from ray_learngene.progress import counted
from ray_learngene.provenance import provenance, publishable
from ray_learngene.store.checkpoints import StoreCheckpoints
from ray_learngene.store.learngenes import StoredLearngene
from ray_learngene.store.store import Store
from ray_learngene.store.sweeps import SETTINGS, read_settings, sweep_file
from ray_learngene.sweeps.arms import Arm
from ray_learngene.sweeps.descendant import decisive_settings
from ray_learngene.sweeps.equal_cost import equal_cost_epochs
from ray_learngene.sweeps.exports import AddsExports, add_exports
from ray_learngene.sweeps.latency import Meter, latency_meter
from ray_learngene.sweeps.live_page import LivePage
from ray_learngene.sweeps.results import earlier_rows, write_results
from ray_learngene.sweeps.run import run_trials
from ray_learngene.sweeps.running import running
from ray_learngene.sweeps.selection import (
    Selection,
    check_texts,
    cost_columns,
    load_arms,
    load_learngene,
    parse_arms,
    require_reach,
    select,
)
from ray_learngene.sweeps.tracked import TrackedTrials
from ray_learngene.sweeps.trial import Trial
from ray_learngene.sweeps.trials import Follower, SweepInputs
from ray_learngene.tracking.trackers import Trackers
from ray_learngene.training.flops import forward_flops
from ray_learngene.training.optimizers import traits_of

if TYPE_CHECKING:
    from ray.tune import Callback

log = logging.getLogger(__name__)


def sweep(config: SweepConfig, callbacks: Sequence[Callback] = ()) -> pandas.DataFrame:
    """Train every descendant that is not finished yet, and publish each as it finishes.

    Args:
        callbacks: Ray Tune's (`ray.tune.Callback`), which run in this process. A Tune trial trains one descendant where
            `siblings` is 1, else several; `member` of a result says which.

    Returns:
        The results table, one row per descendant, as written to `sweeps/<name>/results.parquet`.

    Raises:
        Diverged: some did, and none failed otherwise; the others are published.
        Interrupted: this process was asked to end; the same call continues.
        UserError: see the message; nothing has been trained then, or (some failed) the others are published.
    """
    if callbacks and config.in_process:
        raise UserError("callbacks are Ray Tune's: leave in_process out")
    sweep_file(config.name, SETTINGS)  # refuses a name that no store can hold
    check_texts(config)
    traits_of(config)  # refuses an optimizer that does not work
    require_packages(config.export)
    if config.compile and config.in_process:  # else it is a matter of the hosts that train
        require_compiler()
    store = Store.of(config)
    store.check(write=True)
    with Trackers(config.track) as trackers:
        return _sweep(config, store, trackers, callbacks)


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
    learngene = stored.learngene
    arms = parse_arms(config, learngene)
    require_reach(config, store, arms, stored)
    preprocessing = _preprocessing(config, learngene)
    config = config.model_copy(update={"interpolation": preprocessing.interpolation})  # in training as in evaluation
    images = _images(config, preprocessing)
    if learngene.spec.classes and learngene.labels != images.train.classes:
        mapped = order_of(learngene.labels, images.train.classes) is not None
        log.info(
            f"learngene {config.learngene} has the classes of --data {config.data} in another order: mapped by name"
            if mapped
            else f"learngene {config.learngene} has other classes than --data {config.data}: descendants begin with a "
            "new head"
        )
    ancestry = load_ancestry(config.ancestry, store) if config.ancestry else None
    if ancestry:
        match_classes(ancestry, str(config.ancestry), config.data, ImageSets(images.train, images.val))
        ancestry.accept(preprocessing.mean, preprocessing.std)
    earlier = read_settings(store, config.name)
    common = _common_settings(config, images, ancestry, arms, stored)
    _refuse_another(store, config.name, earlier, common)
    micro_batch = config.batch_size // config.accumulation
    seeds = range(config.seed, config.seed + config.seeds)
    with nullcontext(known) if known else latency_meter(config) as measure:
        selection = select(config, learngene, len(images.train.classes), measure, store)
        learngenes = load_arms(config, store, arms, selection, stored, seeds)  # before anything is timed
        costs = {
            one.spec: cost_columns(one.spec, measure(one.spec), micro_batch, checkpointed=config.grad_checkpointing)
            for one in selection.specs
        }
    if config.grad_checkpointing:
        checkpoint_gradients(build(selection.specs[0].spec))  # refuses a model without blocks
    config = config.model_copy(update={"scratch": _scratch(config, earlier)})
    inputs = SweepInputs(
        config=config,
        images=images,
        ancestry=ancestry,
        store=store,
        learngenes=learngenes,
        costs=costs,
    )
    settings = {
        "format": 1,
        "name": config.name,
        "common": common,
        "budgets": budgets_of(selection),
        "scratch": config.scratch,
        "config": publishable(config.model_dump(mode="json")),
        **provenance(),
    }
    before = earlier_rows(store, config.name)
    epochs = scratch_epochs(inputs, arms, before)
    wanted = [
        _as_before(
            Trial(arm, choice.spec, seed, config.lr, None if arm.learngene else epochs.get(choice.spec)), inputs, before
        )
        for choice in selection.specs
        for seed in seeds
        for arm in arms
    ]
    for each in {one.manifest.name: one for trial in wanted if (one := inputs.learngene(trial))}.values():
        log_license(f"learngene {each.manifest.name}", stored_origin(each.manifest, store))
    return Prepared(inputs, settings, before, wanted)


def _sweep(config: SweepConfig, store: Store, trackers: Trackers, callbacks: Sequence[Callback]) -> pandas.DataFrame:
    prepared = prepare(config, store)
    inputs, before, wanted, config = prepared.inputs, prepared.before, prepared.wanted, prepared.inputs.config
    settings = prepared.settings
    _tell_scratch(config, tuple(dict.fromkeys(trial.arm for trial in wanted)), wanted)
    text = json.dumps(settings, indent=2) + "\n"
    unfinished: list[dict[str, Any]] = []
    page = LivePage(store, config.name, before)
    tracked = TrackedTrials(trackers, inputs)

    def on_start(count: int) -> None:
        store.write_text(sweep_file(config.name, SETTINGS), text)
        page.started(count)

    try:
        with running(store, config.name), page:
            followers: list[Follower] = [page, tracked] if config.track else [page]
            run_trials(inputs, wanted, before, on_start, unfinished.append, followers, callbacks)
            add_exports(AddsExports(config, inputs.images, store), before, tracked.exported)
    except BaseException:
        if unfinished:
            with suppress(UserError):  # what ended the sweep matters more
                _settle(store, config.name, before, unfinished)
        raise
    table = _settle(store, config.name, before, unfinished)
    failed = [row for row in unfinished if row["status"] in ("failed", "diverged")]
    if failed:
        kind = Diverged if all(row["status"] == "diverged" for row in failed) else RunError
        others = "the others are published, " if len(failed) < len(wanted) else ""
        raise kind(
            f"{len(failed)} of {counted(len(wanted), 'descendant')} failed: {failed[0]['error']}; {others}"
            "run the sweep again to retry these"
        )
    return table


def _scratch(config: SweepConfig, earlier: Mapping[str, Any] | None) -> Literal["cost", "epochs"]:
    """Return how long arms without a learngene train: as given, as the sweep began, or at equal cost."""
    if config.scratch:
        return config.scratch
    return "epochs" if earlier is not None and earlier["scratch"] == "epochs" else "cost"


def scratch_epochs(inputs: SweepInputs, arms: Sequence[Arm], before: Sequence[dict[str, Any]]) -> dict[Spec, int]:
    """Return the epochs by spec of arms without a learngene; empty where they are those of the sweep."""
    config, images, teacher = inputs.config, inputs.images, inputs.ancestry
    if config.scratch != "cost" or all(arm.learngene for arm in arms):
        return {}
    return equal_cost_epochs(
        config,
        config,
        list(inputs.costs),
        arms,
        inputs.learngenes,
        inputs.store,
        steps_per_epoch=len(images.train) // config.batch_size,
        costs=inputs.costs,
        teacher=config.ancestry,
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


def _tell_scratch(config: SweepConfig, arms: Sequence[Arm], wanted: Sequence[Trial]) -> None:
    """Say how long arms without a learngene train."""
    names = ", ".join(arm.text for arm in arms if not arm.learngene)
    found = sorted({trial.epochs for trial in wanted if trial.epochs is not None})
    epochs = (f"{found[0]} to " if len(found) > 1 else "") + counted(found[-1] if found else config.epochs, "epoch")
    if found:
        log.info(f"{names}: {epochs}, the cost of a descendant with its share of the learngene (--scratch cost)")
    elif names:
        log.info(f"{names}: {epochs}, as the others; the learngene's cost is not counted (--scratch epochs)")


def _settle(
    store: Store, name: str, before: Sequence[dict[str, Any]], unfinished: Sequence[dict[str, Any]]
) -> pandas.DataFrame:
    """Write the results table, and remove the checkpoints of trials that no later run continues."""
    stopped = [row for row in before if row["status"] == "stopped"]
    table = write_results(store, name, [*stopped, *unfinished])
    for row in unfinished:
        if row["status"] in ("stopped", "diverged"):
            StoreCheckpoints(store, f"{name}/{row['descendant']}").remove()
    return table


def budgets_of(selection: Selection) -> dict[str, int]:
    """Return the budgets with the parameters of the size that each chose."""
    return {text: int(choice.costs["params"]) for text, choice in selection.chosen.items()}


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

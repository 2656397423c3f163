"""Run a benchmark: searches, distillations and sweeps, each once, on Ray or in this process.

learngene bench --config jobs/recipes/digits-bench.yaml --store ./store --out benchmarks/methods/digits
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import pandas

from ray_learngene import sigterm
from ray_learngene.ancestry.classes import match_classes
from ray_learngene.ancestry.model import load_ancestry
from ray_learngene.compare.arms import ArmPlan, Distillation
from ray_learngene.compare.budgets import with_equal_budgets
from ray_learngene.compare.distillations import distill_all, quiet, refuse_failed
from ray_learngene.compare.front import longer, still_gaining
from ray_learngene.compare.plan import plan_arms
from ray_learngene.compare.report import PAGE, write_report
from ray_learngene.compare.runs import distill_config, extract_configs
from ray_learngene.compare.searches import search_distillation, search_tuning
from ray_learngene.compare.table import Chosen, bench_table
from ray_learngene.compare.transfer import check_sets, transfer
from ray_learngene.compare.tuning import final_sweeps
from ray_learngene.config import BenchConfig
from ray_learngene.config.decides import BENCHMARK, decisive, require_same
from ray_learngene.data.pipeline import checked_image_sets
from ray_learngene.distillation.extract import extract
from ray_learngene.errors import UserError
from ray_learngene.io.local import writable_path
from ray_learngene.provenance import publishable
from ray_learngene.store.lineage import named_artefact
from ray_learngene.store.manifest import folder_of, run_name
from ray_learngene.store.store import Store
from ray_learngene.training.optimizers import traits_of

log = logging.getLogger(__name__)


def bench(config: BenchConfig) -> pandas.DataFrame:
    """Search learning rates, distil and tune every arm at every size and seed, and write the tables and plots.

    Artefacts that are already in the store are not trained again.

    Returns:
        One row per descendant, as written to `<out>/results.parquet` and to the store.

    Raises:
        Interrupted: this process was asked to end; the same call continues.
        UserError: the settings are invalid and nothing was trained, or runs failed and the store has all others.
    """
    folder_of("learngene", config.name)
    folder = writable_path(f"{config.out}/{PAGE}").parent
    traits_of(config)  # refuses an optimizer that does not work
    store = Store.of(config)
    store.check(write=True)
    ancestry = load_ancestry(config.ancestry, store)
    sets = checked_image_sets(config)
    match_classes(ancestry, config.ancestry, config.data, sets, unreadable=config.unreadable)
    check_sets(config)
    config = with_equal_budgets(config, ancestry, len(sets.train))
    arms = plan_arms(config, ancestry.classes)
    for row in arms:
        for reason in dict.fromkeys(row.refused.values()):
            log.warning(f"{row.name}: {reason}")
    distillations = list(dict.fromkeys(d for row in arms for d in row.distillations.values() if d is not None))
    if not distillations:
        raise UserError("no arm is distilled: a benchmark compares learngenes, add one")
    _check_names(config, arms, distillations)
    chosen = Chosen()
    seen = {
        "same_images": _same_images(config, store, sets.train.fingerprint),
        "test_images": len(sets.val),
    }
    folder.mkdir(parents=True, exist_ok=True)
    _refuse_another(config, store, {"ancestry_sha256": ancestry.sha256(), "data_sha256": sets.train.fingerprint})
    with _engine(config), sigterm.graceful():
        seeds = range(config.seed, config.seed + config.seeds)
        search_distillation(config, store, distillations, chosen)
        wanted = [distill_config(config, d, chosen.distill[d], seed) for seed in seeds for d in distillations]
        refuse_failed(distill_all(config, store, wanted, "distil"))
        for row in arms:
            for each in extract_configs(config, row, chosen.distill):
                with quiet():
                    extract(each)
        base = wanted[0].name  # all descendants share its preprocessing and head size
        search_tuning(config, store, arms, base, chosen)
        sweeps = final_sweeps(config, arms, base, chosen)
        planned = arms
        arms = [*arms, *_train_front(config, store, arms, base, chosen, sweeps, seen)]
        moved = transfer(config, store, planned, base, chosen)
    table = bench_table(config, store, sweeps, chosen, seen)
    write_report(config, store, table, arms, folder, moved)
    return table


def _train_front(
    config: BenchConfig,
    store: Store,
    arms: Sequence[ArmPlan],
    base: str,
    chosen: Chosen,
    sweeps: dict[str, list[ArmPlan]],
    seen: Mapping[str, Any],
) -> list[ArmPlan]:
    """Train the reference longer and longer, every size until doubling brings little; add to `sweeps`.

    Only a reference that trains in full from no learngene has a front.
    """
    reference = next(row for row in arms if row.name == config.reference)
    if reference.arm.tune != "full" or reference.method.needs_learngene:
        return []
    rows, left, times = [], reference.specs, 2
    while left and times <= config.front:
        row = longer(config, reference, times, left)
        search_tuning(config, store, [row], base, chosen)
        sweeps |= final_sweeps(config, [row], base, chosen)
        rows.append(row)
        left = still_gaining(config, bench_table(config, store, sweeps, chosen, seen), row, times)
        times *= 2
    return rows


def _same_images(config: BenchConfig, store: Store, fingerprint: str) -> bool | None:
    """Check whether the ancestry was trained on the benchmark's training images; None if the store does not know."""
    made = named_artefact(config.ancestry, store)
    trained_on = made.metadata.get("data_sha256") if made else None
    return None if trained_on is None else bool(trained_on == fingerprint)


def _check_names(config: BenchConfig, arms: Sequence[ArmPlan], distillations: Sequence[Distillation]) -> None:
    """Refuse a benchmark whose learngenes would have names that no store can hold, before anything is trained."""
    seeds = range(config.seed, config.seed + config.seeds)
    for lr in config.lrs:
        for each in distillations:
            for seed in seeds:
                run_name("learngene", distill_config(config, each, lr, seed).name)
            run_name("learngene", distill_config(config, each, lr, config.seed, search=True).name)
        for row in arms:
            for made in extract_configs(config, row, dict.fromkeys(distillations, lr)):
                folder_of("learngene", made.name)


def _refuse_another(config: BenchConfig, store: Store, hashes: dict[str, str]) -> None:
    """Check that an earlier run of this benchmark had the same settings, so that rows stay comparable.

    Arms, sizes, seeds and learning rates may be added later.

    Raises:
        UserError: a benchmark of that name was made with other settings.
    """
    now = publishable(json.loads(json.dumps(decisive(config, BENCHMARK) | hashes)))
    path = f"benches/{config.name}/settings.json"
    if store.create_text(path, json.dumps(now, indent=2) + "\n"):
        return
    before = publishable(store.read_object(path, "choose another --name") or {})
    require_same(before, now, f"the benchmark {config.name!r} in {store.uri}", "")


def _engine(config: BenchConfig) -> contextlib.AbstractContextManager[None]:
    if config.in_process:
        return nullcontext()
    from ray_learngene.cluster.session import ray_cluster

    return ray_cluster(config.address)

"""Run a benchmark: searches, distillations and sweeps, each once, on Ray or in this process.

learngene bench --config jobs/recipes/digits-bench.yaml --store ./store --out benchmarks/methods/digits
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path

import pandas

from ray_learngene import sigterm
from ray_learngene.ancestry.classes import match_classes
from ray_learngene.ancestry.model import load_ancestry
from ray_learngene.compare.distillations import Failure, distill_all, quiet
from ray_learngene.compare.plan import (
    Distillation,
    Row,
    arm_text,
    distill_config,
    extract_configs,
    learning_rates,
    rows,
    sweep_config,
    tuning_epochs,
)
from ray_learngene.compare.report import write_report
from ray_learngene.compare.table import Chosen, bench_table, current_descendants
from ray_learngene.config import BenchConfig
from ray_learngene.config.decides import BENCHMARK, decisive, require_same
from ray_learngene.data.pipeline import checked_image_sets
from ray_learngene.distillation.extract import extract
from ray_learngene.errors import Diverged, UserError
from ray_learngene.models.specs import Spec
from ray_learngene.provenance import publishable
from ray_learngene.store.manifest import folder_of, run_name
from ray_learngene.store.store import Store
from ray_learngene.sweeps.sweep import sweep

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
    store = Store.of(config)
    store.check(write=True)
    ancestry = load_ancestry(config.ancestry, store)
    sets = checked_image_sets(config)
    match_classes(ancestry, config.ancestry, config.data, sets)
    arms = rows(config, ancestry.classes)
    for row in arms:
        for reason in dict.fromkeys(row.refused.values()):
            log.warning(f"{row.name}: {reason}")
    distillations = list(dict.fromkeys(d for row in arms for d in row.distillations.values() if d is not None))
    if not distillations:
        raise UserError("no arm is distilled: a benchmark compares learngenes, add one")
    _check_names(config, arms, distillations)
    chosen = Chosen()
    folder = _folder(config.out)
    _refuse_another(config, store, {"ancestry_sha256": ancestry.sha256(), "data_sha256": sets.train.fingerprint})
    with _engine(config), sigterm.graceful():
        seeds = range(config.seed, config.seed + config.seeds)
        _search_distillation(config, store, distillations, chosen)
        wanted = [distill_config(config, d, chosen.distill[d], seed) for seed in seeds for d in distillations]
        _refuse_failed(distill_all(config, store, wanted, "distil"))
        for row in arms:
            for each in extract_configs(config, row, chosen.distill):
                with quiet():
                    extract(each)
        base = wanted[0].name  # all descendants share its preprocessing and head size
        _search_tuning(config, store, arms, base, chosen)
        sweeps = _final_sweeps(config, arms, base, chosen)
    table = bench_table(config, store, sweeps, chosen)
    write_report(config, store, table, arms, folder)
    return table


def _check_names(config: BenchConfig, arms: Sequence[Row], distillations: Sequence[Distillation]) -> None:
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


def _refuse_failed(failed: Mapping[str, Failure]) -> None:
    if failed:
        name, failure = next(iter(failed.items()))
        raise UserError(
            f"{len(failed)} distillations failed: {name}: {failure.reason}; the others are stored, run it again"
        )


def _folder(out: str) -> Path:
    """Create the folder for the results, before any training."""
    folder = Path(out).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {out}: {error.strerror}; name a folder") from None
    return folder


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
    before = publishable(json.loads(store.read_text(path) or "{}"))
    require_same(before, now, f"the benchmark {config.name!r} in {store.uri}", "")


def _engine(config: BenchConfig) -> contextlib.AbstractContextManager[None]:
    if config.in_process:
        return nullcontext()
    from ray_learngene.cluster.session import ray_cluster

    return ray_cluster(config.address)


def _search_distillation(
    config: BenchConfig, store: Store, distillations: Sequence[Distillation], chosen: Chosen
) -> None:
    """Choose the best learning rate of every distillation on images held out of the training split.

    A family searches at its largest size. A learning rate that diverges is ruled out. Any other failure ends the
    search, because it would choose among fewer rates than reported.
    """
    searched: dict[str, Distillation] = {}
    for one in sorted(distillations, key=lambda one: (one.spec.width, one.spec.depth)):
        searched[one.family] = one
    grid = config.lrs if len(config.lrs) > 1 else ()
    runs = {
        (one, lr): distill_config(config, one, lr, config.seed, search=True) for lr in grid for one in searched.values()
    }
    failed = distill_all(config, store, list(runs.values()), "search")
    _refuse_failed({name: failure for name, failure in failed.items() if not failure.diverged})
    for one in distillations:
        owner = chosen.searched[one] = searched[one.family]
        losses = {
            lr: store.manifest("learngene", runs[owner, lr].name).metadata["metrics"]["val_loss"]
            for lr in grid
            if runs[owner, lr].name not in failed
        }
        chosen.distill[one] = _best(config.lrs, losses, next((each.reason for each in failed.values()), ""))


def _best(grid: Sequence[float], losses: Mapping[float, float], why: str) -> float:
    """Return the learning rate with the smallest loss, or the only learning rate of the grid."""
    if len(grid) == 1:
        return grid[0]
    if not losses:
        raise UserError(f"none of the learning rates {', '.join(f'{lr:g}' for lr in grid)} works: {why}")
    return min(losses, key=lambda lr: losses[lr])


def _search_tuning(config: BenchConfig, store: Store, arms: Sequence[Row], base: str, chosen: Chosen) -> None:
    """Choose the best learning rate of every arm at its middle size, on the held-out training images.

    The learngenes were distilled on these images too; their labels were used only if alpha is below 1.
    """
    groups: dict[tuple[str, int, Spec], list[Row]] = defaultdict(list)
    for row in arms:
        groups[row.arm.tune, tuning_epochs(config, row), row.middle].append(row)
    for (_, _, spec), some in groups.items():
        texts = {row.name: arm_text(config, row, chosen.distill) for row in some}
        grid = learning_rates(config, some[0])
        losses: dict[str, dict[float, float]] = defaultdict(dict)
        why = ""
        for lr in grid if len(grid) > 1 else ():
            run = sweep_config(config, some[0], list(texts.values()), base, lr, [spec], search=True)
            try:
                sweep(run)
            except Diverged as error:  # rules this learning rate out for the arms that diverged
                why = str(error)
            for row in some:
                for one in current_descendants(store, run.name):
                    if one.metadata["row"]["arm"] == texts[row.name]:
                        losses[row.name][lr] = one.metadata["row"]["val_loss"]
        for row in some:
            chosen.tune[row.name] = _best(grid, losses[row.name], why)


def _final_sweeps(config: BenchConfig, arms: Sequence[Row], base: str, chosen: Chosen) -> dict[str, list[Row]]:
    """Run one sweep for all arms with the same tuning, sizes and learning rate; return the arms by sweep name."""
    groups: dict[tuple[str, int, float, tuple[Spec, ...]], list[Row]] = defaultdict(list)
    for row in arms:
        for width in dict.fromkeys(spec.width for spec in row.specs):
            some = tuple(spec for spec in row.specs if spec.width == width)
            groups[row.arm.tune, tuning_epochs(config, row), chosen.tune[row.name], some].append(row)
    sweeps = {}
    for (_, _, lr, specs), some_rows in groups.items():
        texts = [arm_text(config, row, chosen.distill) for row in some_rows]
        run = sweep_config(config, some_rows[0], texts, base, lr, specs, search=False)
        sweep(run)
        sweeps[run.name] = some_rows
    return sweeps

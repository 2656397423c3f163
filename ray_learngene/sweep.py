"""A sweep: many descendants in parallel from one learngene, on Ray Tune.

learngene sweep --learngene digits --name digits --data digits --budgets "params<=150k" "params<=300k" --epochs 5
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import Any

import pandas

from ray_learngene.candidates import (
    Selection,
    check_expansions,
    cost_columns,
    load_learngene,
    measured_latency,
    parse_arms,
    select,
)
from ray_learngene.config import SweepConfig
from ray_learngene.costs import Latency
from ray_learngene.data.images import Images, Preprocessing, checked_image_sets
from ray_learngene.descend import Descendant, descendant, train_descendant
from ray_learngene.errors import RunError, UserError
from ray_learngene.manifest import Manifest, folder_of
from ray_learngene.methods import Learngene
from ray_learngene.provenance import provenance
from ray_learngene.report import print_leaderboard
from ray_learngene.results import PAGE, RESULTS, SETTINGS, write_results
from ray_learngene.specs import Spec
from ray_learngene.store import Store


def sweep(config: SweepConfig) -> pandas.DataFrame:
    """Train every descendant that is not finished yet, publish each as it finishes, and print the leaderboard.

    Returns:
        The results table, one row per descendant, as written to `sweeps/<name>/results.parquet`.

    Raises:
        UserError: see the message; nothing has been trained then.
    """
    folder_of("descendant", f"{config.name}/x")  # refuses a name that no store can hold
    store = Store(config.store)
    store.check(write=True)
    learngene, manifest = load_learngene(config)
    arms = parse_arms(config, learngene)
    sets = checked_image_sets(config)
    preprocessing = Preprocessing(
        **{
            **learngene.preprocessing,
            "image_size": config.image_size or learngene.spec.image,
            "crop_pct": config.crop_pct,
            "interpolation": config.interpolation,
        }
    )
    images = Images(sets.train, sets.val, preprocessing, config, config.loader_workers)
    images.training_batches(config)  # refuses what does not divide
    measure = measured_latency(config)
    selection = select(config, learngene, len(sets.train.classes), measure)
    check_expansions(arms, learngene, selection)
    latencies = {choice.spec: measure(choice.spec) for choice in selection.specs}
    bases = [
        {"arm": arm, "spec": choice.spec, "seed": config.seed + index}
        for choice in selection.specs
        for index in range(config.seeds)
        for arm in arms
    ]
    store.write_text(f"sweeps/{config.name}/{SETTINGS}", _settings(config, manifest, selection))
    finished = {one.name.split("/")[1]: one.metadata["row"] for one in store.manifests("descendant", under=config.name)}
    failed = _run(config, learngene, manifest, images, bases, latencies, finished)
    table = write_results(store, config.name, failed)
    print_leaderboard(table, {text: choice.spec.depth for text, choice in selection.chosen.items()})
    print(f"results: {store.uri}/sweeps/{config.name}/{RESULTS} and {PAGE}", flush=True)
    if failed:
        raise UserError(
            f"{len(failed)} of the sweep's descendants failed: {failed[0]['error']}; run it again to retry them"
        )
    return table


def _settings(config: SweepConfig, manifest: Manifest, selection: Selection) -> str:
    facts = {
        "format": 1,
        "name": config.name,
        "learngene": manifest.name,
        "learngene_version": manifest.version,
        "budgets": {text: choice.spec.depth for text, choice in selection.chosen.items()},
        "config": config.model_dump(mode="json"),
        **provenance(),
    }
    return json.dumps(facts, indent=2) + "\n"


def _run(
    config: SweepConfig,
    learngene: Learngene,
    manifest: Manifest,
    images: Images,
    bases: Sequence[dict[str, Any]],
    latencies: dict[Spec, Latency],
    finished: dict[str, dict[str, Any]],
) -> list[dict[str, Any]]:
    """Run the trials that are left; returns the rows of those that failed or were stopped early."""
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")  # histories are published with each descendant
    os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "60")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    from ray import tune

    from ray_learngene.cluster import ray_cluster, require_resources
    from ray_learngene.search import GroupedASHA, LearningRateSearch
    from ray_learngene.sweep_progress import SweepProgress

    def describe(base: dict[str, Any], lr: float) -> Descendant:
        return descendant(base["arm"], base["spec"], base["seed"], lr, config, images, manifest.version)

    groups = [{**base, "spec": base["spec"].model_dump(), "group": describe(base, 0.0).group} for base in bases]
    search, space, count = None, {}, 0
    if config.lr_search:
        known: dict[str, list[tuple[float, float]]] = {}
        for row in finished.values():
            base = next((base for base in bases if describe(base, row["lr"]).name == row["descendant"]), None)
            if base:
                known.setdefault(describe(base, row["lr"]).group, []).append((row["lr"], row["top1"]))
        search = LearningRateSearch(
            groups, known, trials=config.lr_search, low=config.lr_low, high=config.lr_high, seed=config.seed
        )
        count = search.total
    else:
        left = [
            group for base, group in zip(bases, groups, strict=True) if describe(base, config.lr).name not in finished
        ]
        space, count = {"trial": tune.grid_search([{**group, "lr": config.lr} for group in left])}, len(left)
    skipped = len(groups) * max(1, config.lr_search) - count
    print(
        f"sweep {config.name}: {count} descendants to train" + (f", {skipped} already finished" if skipped else ""),
        flush=True,
    )
    if not count:
        return []
    with ray_cluster(config.address):
        require_resources(1, config.cpus_per_trial, config.gpus_per_trial, "trials")
        storage_path, storage_filesystem = Store(config.store).ray_storage(f"sweep-{config.name}")
        facts = {
            "learngene": manifest.name,
            "learngene_version": manifest.version,
            "learngene_parameters": learngene.parameters(),
            "learngene_seconds": manifest.metadata["cost"]["seconds"],
            "learngene_images": manifest.metadata["cost"]["images"],
        }
        trainable = tune.with_parameters(
            _trial,
            learngene=learngene,
            images=images,
            config=config,
            version=manifest.version,
            costs={spec: cost_columns(spec, latency) for spec, latency in latencies.items()},
            facts=facts,
        )
        results = tune.Tuner(
            tune.with_resources(trainable, {"CPU": config.cpus_per_trial, "GPU": config.gpus_per_trial}),
            param_space=space,
            tune_config=tune.TuneConfig(
                num_samples=count if search else 1,
                metric="top1",
                mode="max",
                search_alg=search,
                scheduler=GroupedASHA(config.epochs) if config.asha else None,
                max_concurrent_trials=config.max_concurrent or None,
                reuse_actors=True,
                trial_dirname_creator=lambda trial: trial.trial_id,
            ),
            run_config=tune.RunConfig(
                name=f"sweep-{config.name}",
                storage_path=storage_path,
                storage_filesystem=storage_filesystem,
                failure_config=tune.FailureConfig(max_failures=config.max_failures),
                callbacks=[SweepProgress(count)],
                verbose=0,
            ),
        ).fit()
    return [row for index in range(len(results)) for row in _unfinished(results[index], config)]


def _unfinished(result: Any, config: SweepConfig) -> list[dict[str, Any]]:
    metrics = result.metrics or {}
    if metrics.get("finished"):
        return []
    trial = (result.config or {}).get("trial") or result.config
    error = metrics.get("error") or (str(result.error).strip().splitlines()[-1] if result.error else None)
    return [
        {
            "descendant": None,
            "sweep": config.name,
            "status": "failed" if error else "stopped",
            "error": error,
            "arm": trial["arm"],
            "width": trial["spec"]["width"],
            "depth": trial["spec"]["depth"],
            "seed": trial["seed"],
            "lr": trial["lr"],
            "epochs": config.epochs,
            "top1": metrics.get("top1"),
            "steps": metrics.get("step"),
            "seconds": metrics.get("seconds"),
        }
    ]


def _trial(
    trial: dict[str, Any],
    *,
    learngene: Learngene,
    images: Images,
    config: SweepConfig,
    version: str,
    costs: dict[Spec, dict[str, Any]],
    facts: dict[str, Any],
) -> None:
    """One Tune trial: a plain single process."""
    import torch
    from ray import tune

    threads = max(1, int(config.cpus_per_trial))
    torch.set_num_threads(threads)
    if torch.cuda.is_available() and 0 < config.gpus_per_trial < 1:
        torch.cuda.set_per_process_memory_fraction(config.gpus_per_trial)  # Ray's shares are bookkeeping only
    trial = trial.get("trial", trial)
    spec = Spec(**trial["spec"])
    one = descendant(trial["arm"], spec, trial["seed"], trial["lr"], config, images, version)
    try:
        row = train_descendant(one, learngene, images, config, costs[spec], facts, tune.report)
    except RunError as error:
        tune.report({"top1": float("-inf"), "error": str(error)})
        return
    tune.report({**row, "epoch": config.epochs, "epochs": config.epochs, "finished": True})

"""A sweep: many descendants in parallel from one learngene, on Ray Tune.

learngene sweep --learngene digits --name digits --data digits --budgets "params<=150k" "params<=300k" --epochs 5
"""

from __future__ import annotations

import json
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
from ray_learngene.data.images import Images, Preprocessing, checked_image_sets
from ray_learngene.errors import UserError
from ray_learngene.manifest import Manifest, folder_of
from ray_learngene.methods import Learngene
from ray_learngene.provenance import provenance
from ray_learngene.report import print_leaderboard
from ray_learngene.results import PAGE, RESULTS, SETTINGS, earlier_rows, write_results
from ray_learngene.store import Store
from ray_learngene.trials import SweepInputs, Trial, run_trials


def sweep(config: SweepConfig) -> pandas.DataFrame:
    """Train every descendant that is not finished yet, publish each as it finishes, and print the leaderboard.

    Returns:
        The results table, one row per descendant, as written to `sweeps/<name>/results.parquet`.

    Raises:
        UserError: see the message; nothing has been trained then, or (some failed) the others are published.
    """
    folder_of("descendant", f"{config.name}/x")  # refuses a name that no store can hold
    store = Store(config.store)
    store.check(write=True)
    learngene, manifest = load_learngene(config)
    arms = parse_arms(config, learngene)
    images = _images(config, learngene)
    measure = measured_latency(config)
    selection = select(config, learngene, len(images.train.classes), measure)
    check_expansions(arms, learngene, selection)
    inputs = SweepInputs(
        config=config,
        learngene=learngene,
        images=images,
        costs={choice.spec: cost_columns(choice.spec, measure(choice.spec)) for choice in selection.specs},
        facts=_facts(manifest, learngene),
    )
    wanted = [
        Trial(arm, choice.spec, config.seed + index)
        for choice in selection.specs  # largest first: the longest trials must not start last
        for index in range(config.seeds)
        for arm in arms
    ]
    store.write_text(f"sweeps/{config.name}/{SETTINGS}", _settings(config, manifest, selection))
    before = earlier_rows(store, config.name)
    rows = run_trials(inputs, wanted, before)
    table = write_results(store, config.name, [*(row for row in before if row["status"] == "stopped"), *rows])
    print_leaderboard(table, budgets_of(selection))
    print(f"results: {store.uri}/sweeps/{config.name}/{RESULTS} and {PAGE}", flush=True)
    failed = [row for row in rows if row["status"] == "failed"]
    if failed:
        raise UserError(
            f"{len(failed)} of {len(wanted)} descendants failed: {failed[0]['error']}; the others are published, "
            "run the sweep again to retry these"
        )
    return table


def budgets_of(selection: Selection) -> dict[str, int]:
    """Budgets with the depth that each chose."""
    return {text: choice.spec.depth for text, choice in selection.chosen.items()}


def _images(config: SweepConfig, learngene: Learngene) -> Images:
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
    return images


def _facts(manifest: Manifest, learngene: Learngene) -> dict[str, Any]:
    """What every descendant records of its learngene."""
    return {
        "learngene": manifest.name,
        "learngene_version": manifest.version,
        "learngene_parameters": learngene.parameters(),
        "learngene_seconds": manifest.metadata["cost"]["seconds"],
        "learngene_images": manifest.metadata["cost"]["images"],
    }


def _settings(config: SweepConfig, manifest: Manifest, selection: Selection) -> str:
    facts = {
        "format": 1,
        "name": config.name,
        "learngene": manifest.name,
        "learngene_version": manifest.version,
        "budgets": budgets_of(selection),
        "config": config.model_dump(mode="json"),
        **provenance(),
    }
    return json.dumps(facts, indent=2) + "\n"

"""Take a learngene from a trained model, without distillation.

learngene extract --source store:ancestries/vit --method weight-selection --name vit-selected
"""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path
from typing import Any

import ray_learngene.models.timm_import  # noqa: F401  isort:skip  (before the first timm import)
import timm
import torch
from torch import nn

from ray_learngene.ancestry.model import load_ancestry
from ray_learngene.ancestry.origin import stored_origin
from ray_learngene.config import ExtractConfig
from ray_learngene.distillation.task import made_before
from ray_learngene.errors import UserError
from ray_learngene.io.scratch import scratch_folder
from ray_learngene.methods.registry import create_method
from ray_learngene.methods.trained_source import source_spec
from ray_learngene.models.families.made import made
from ray_learngene.models.origin import Origin
from ray_learngene.models.preprocessing import Preprocessing
from ray_learngene.models.timm_folder import labels_of
from ray_learngene.provenance import fingerprint, provenance, publishable
from ray_learngene.store.learngenes import StoredLearngene
from ray_learngene.store.manifest import Manifest, folder_of
from ray_learngene.store.store import Store

log = logging.getLogger(__name__)

_NO_COST = {"steps": 0, "images": 0, "flops": 0, "teacher_flops": 0}


def extract(config: ExtractConfig) -> Manifest:
    """Take a learngene from a trained vision transformer and publish it in the store.

    The cost is the seconds of the extraction. A source learngene, such as `pretrained`, adds its own cost.

    Raises:
        UserError: the method takes none from a trained model, the model is none it can use, or the name is taken.
    """
    folder_of("learngene", config.name)
    method = create_method(config.method)
    store = Store.of(config)
    store.check(write=True)
    began = time.monotonic()
    entry_point, _, _ = config.source.partition(".")
    if timm.is_model(entry_point):  # what has too little to take is refused before weights are fetched
        source_spec(method, made(entry_point, {}).model)
    model, labels, preprocessing, facts = _source(config.source, store)
    origin = Origin.join([facts["origin"]], stated=config.license)
    settings = {"method": method.name, **method.model_dump(mode="json"), "source_sha256": facts["sha256"]}
    done = made_before(store, "learngene", config, settings)
    if done is not None:
        return done
    learngene = method.extract(model).describe(labels=labels, preprocessing=preprocessing.model_dump(mode="json"))
    cost = {**_NO_COST, "seconds": 0.0, **facts["cost"]}
    metadata = {
        **json.loads(json.dumps(learngene.description())),
        "fingerprint": fingerprint(settings),
        "config": publishable(config.model_dump(mode="json")),
        "source": publishable(config.source),
        "metrics": facts["metrics"],
        "cost": {**cost, "seconds": round(cost["seconds"] + time.monotonic() - began, 3)},
        "origin": origin.model_dump(mode="json"),
        **provenance(),
    }
    with scratch_folder() as temporary:
        learngene.save(Path(temporary))
        manifest = store.publish("learngene", config.name, Path(temporary), metadata, overwrite=config.overwrite)
    log.info(f"published learngene {config.name} in {store.uri}: {learngene.parameters():,} parameters")
    return manifest


def _source(reference: str, store: Store) -> tuple[nn.Module, tuple[str, ...], Preprocessing, dict[str, Any]]:
    """Load the trained model, its labels, its preprocessing and its cost as far as it is known."""
    if reference.startswith("store:learngenes/"):
        stored = StoredLearngene.load(store, reference.removeprefix("store:learngenes/"))
        learngene, metadata = stored.learngene, stored.manifest.metadata
        model, other = (create_method(learngene.method).expand(learngene, learngene.spec, seed=seed) for seed in (0, 1))
        drawn = any(not torch.equal(tensor, other.state_dict()[name]) for name, tensor in model.state_dict().items())
        # fewer, and layers were made of others by a rule that need not be the one they were trained by
        if drawn or learngene.parameters() < sum(parameter.numel() for parameter in model.parameters()):
            raise UserError(
                f"--source {reference}: a learngene of method {learngene.method!r} is no whole model: "
                "the rest would be random or repeated; take one of method 'pretrained'"
            )
        spent = stored.facts()  # with that of the learngene that it started from
        cost = {name: spent.get(f"learngene_{name}") or value for name, value in metadata["cost"].items()}
        facts = {"sha256": stored.manifest.version, "cost": cost, "metrics": metadata["metrics"]}
        facts["origin"] = stored_origin(stored.manifest, store)
        return model, learngene.labels, Preprocessing(**learngene.preprocessing), facts
    ancestry = load_ancestry(reference, store, flag="--source", needs_head=False)
    trained = ancestry.model
    preprocessing = Preprocessing.of(trained, f"--source {reference}")
    facts = {"sha256": ancestry.sha256(), "cost": {}, "metrics": {}, "origin": ancestry.origin}
    return trained, labels_of(trained), preprocessing, facts

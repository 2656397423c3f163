"""A small store with a learngene, and what a sweep would have recorded of its descendants."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ray_learngene.methods.registry import create_method
from ray_learngene.models.build import timm_arguments
from ray_learngene.models.costs import costs
from ray_learngene.models.preprocessing import Preprocessing
from ray_learngene.models.specs import PRESETS, Spec
from ray_learngene.models.timm_folder import export_timm
from ray_learngene.store.index import labels_key
from ray_learngene.store.store import Manifest, Store

SPEC = PRESETS["nano"].replace(depth=6)
DIGITS = tuple(str(digit) for digit in range(10))
PREPROCESSING = Preprocessing(image_size=8, mean=(0.4,) * 3, std=(0.3,) * 3, crop_pct=1.0, interpolation="bicubic")


def publish_learngene(root: Path, method: str = "any-size", name: str = "gene", spec: Spec = SPEC) -> Store:
    """Return a store with the learngene of an untrained auxiliary model."""
    store, made = Store(str(root / "store")), create_method(method)
    torch.manual_seed(0)
    learngene = made.extract(made.auxiliary(spec)).describe(
        labels=DIGITS, preprocessing=PREPROCESSING.model_dump(mode="json")
    )
    learngene.save(root / "made" / name)
    facts = {**learngene.description(), "cost": {"seconds": 1, "images": 1}, "metrics": {"top1": 1.0}}
    store.publish("learngene", name, root / "made" / name, facts)
    return store


def publish_descendant(store: Store, gene: Manifest, spec: Spec, arm: str, root: Path, **row: Any) -> None:
    """A descendant with its row, as a sweep publishes it."""
    name = f"{arm}-w{spec.width}-d{spec.depth:02d}"
    folder = root / "made" / f"{name}-{gene.name}"
    model = create_method("scratch").expand(None, spec)
    export_timm(model, folder, labels=DIGITS, preprocessing=PREPROCESSING, model_args=timm_arguments(spec))
    facts = {
        "descendant": name,
        "sweep": "sizes",
        "status": "finished",
        "arm": arm,
        **spec.model_dump(exclude={"mlp_ratio"}),
        **{"seed": 0, "lr": 1e-3, "latency": 1.0, "seconds": 1.0, "fit_steps": 0},
        **costs(spec),
        **{"latency_device": "cpu x", "latency_batch": 1, "latency_dtype": "float32", "latency_threads": 1},
        **{"top1": 90.0, "top1_untuned": 50.0, "top1_epoch1": 80.0},
        **{"learngene": gene.name, "learngene_version": gene.version},
        **{"data": "digits", "validation": "v", "labels": labels_key(DIGITS)},
    }
    store.publish("descendant", f"sizes/{name}", folder, {"row": {**facts, **row}})

"""A descendant: what decides its result, and hence its name in the store."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from ray_learngene.ancestry.model import Ancestry
from ray_learngene.config import SweepConfig
from ray_learngene.config.decides import DESCENDANT, TAUGHT_DESCENDANT, decisive
from ray_learngene.config.image import ImageShape
from ray_learngene.data.pipeline import ImagePipeline
from ray_learngene.models.sizes import size_name
from ray_learngene.models.specs import Spec
from ray_learngene.provenance import fingerprint
from ray_learngene.store.learngenes import StoredLearngene
from ray_learngene.store.manifest import LONGEST_NAME
from ray_learngene.store.store import Store
from ray_learngene.sweeps.arms import Arm


def decisive_settings(config: SweepConfig, ancestry: Ancestry | None, image: ImageShape) -> dict[str, Any]:
    """Return the settings that decide the results of descendants, as JSON values."""
    settings = decisive(config, TAUGHT_DESCENDANT if ancestry else DESCENDANT)
    settings = {name: value for name, value in settings.items() if name not in ("lr", "seed")}  # a trial's own
    if ancestry:
        settings |= {"ancestry": ancestry.sha256(), **ancestry.resizing(image)}
        if ancestry.scale is not None:  # an earlier version gave it the images as they were
            settings["normalised_anew"] = True
    return settings


@dataclass(frozen=True)
class SweepContext:
    """What all descendants of a sweep share.

    Attributes:
        ancestry: Teacher of the descendants; None where they learn from labels alone.
    """

    config: SweepConfig
    images: ImagePipeline
    ancestry: Ancestry | None
    store: Store


@dataclass(frozen=True)
class Descendant:
    """What one trial trains. Its name in the store ends in a hash of everything that decides the result."""

    arm: Arm
    spec: Spec
    seed: int
    lr: float
    key: str
    epochs: int | None = None

    @property
    def name(self) -> str:
        slug = re.sub(r"[^a-zA-Z0-9._-]+", ".", self.arm.text).strip(".")
        rest = f"-{size_name(self.spec)}-s{self.seed}-{self.key}"
        return f"{slug[: LONGEST_NAME - len(rest)]}{rest}"


def descendant(
    arm: Arm,
    spec: Spec,
    seed: int,
    lr: float,
    shared: SweepContext,
    stored: StoredLearngene | None,
    epochs: int | None = None,
) -> Descendant:
    """Return the descendant of an arm and a spec under a sweep's settings; `epochs`: other than those."""
    config, images = shared.config, shared.images
    method = arm.method
    facts = {
        "arm": {"method": method.name, **method.options()},
        "learngene": stored.manifest.version if stored else None,
        "spec": spec.model_dump(),
        "seed": seed,
        "lr": lr,
        "data": images.train.fingerprint,
        "preprocessing": images.preprocessing.model_dump(mode="json"),
        "settings": {
            **decisive_settings(config, shared.ancestry, images.preprocessing.image_size),
            **({} if epochs is None else {"epochs": epochs}),
        },
    }
    return Descendant(arm, spec, seed, lr, fingerprint(facts)[:8], epochs)

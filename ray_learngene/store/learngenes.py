"""Learngenes in a store."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from safetensors import SafetensorError

from ray_learngene.errors import UserError
from ray_learngene.methods.base import DESCRIPTION_FILE, WEIGHTS_FILE, Learngene
from ray_learngene.store.manifest import Manifest
from ray_learngene.store.store import Store

# What every descendant records of its learngene, empty where its method needs none.
LEARNGENE_COLUMNS = (
    *("learngene", "learngene_version", "learngene_parameters"),
    *("learngene_seconds", "learngene_images", "learngene_flops", "learngene_teacher_flops"),
)


@dataclass(frozen=True)
class StoredLearngene:
    """A verified learngene and its manifest."""

    learngene: Learngene
    manifest: Manifest

    @classmethod
    def load(cls, store: Store, name: str) -> StoredLearngene:
        """Read a learngene from a store.

        Raises:
            UserError: there is none of that name, or its files are not what its manifest says.
        """
        manifest = store.manifest("learngene", name)
        files = [store.read_file(manifest, file) for file in (WEIGHTS_FILE, DESCRIPTION_FILE)]
        try:
            return cls(Learngene.from_bytes(*files), manifest)
        except (SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
            detail = " ".join(str(error).split())[:200]
            raise UserError(
                f"the learngene {name!r} in {store.uri} is not one that this version can read ({detail}): make it again"
            ) from error

    def facts(self) -> dict[str, Any]:
        """The columns of `LEARNGENE_COLUMNS`; a learngene that started from another has cost that one too."""
        cost, start = self.manifest.metadata["cost"], self.manifest.metadata.get("start", {})
        costs = {f"learngene_{name}": cost.get(name) for name in ("seconds", "images", "flops", "teacher_flops")}
        return {
            "learngene": self.manifest.name,
            "learngene_version": self.manifest.version,
            "learngene_parameters": self.learngene.parameters(),
            **{name: None if value is None else value + (start.get(name) or 0) for name, value in costs.items()},
        }

"""Learngenes in a store."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError
from safetensors import SafetensorError

from ray_learngene.config.documents import first_error
from ray_learngene.data.class_names import order_of
from ray_learngene.errors import UserError
from ray_learngene.methods.base import DESCRIPTION_FILE, WEIGHTS_FILE, Learngene
from ray_learngene.methods.registry import method_class
from ray_learngene.store.manifest import Manifest
from ray_learngene.store.rows import numbers_of
from ray_learngene.store.store import Store
from ray_learngene.terminal import one_line

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
            learngene = Learngene.from_bytes(*files)
            _check_options(learngene)
            return cls(learngene, manifest)
        except (SafetensorError, ValueError, OverflowError) as error:
            detail = first_error(error) if isinstance(error, ValidationError) else one_line(error)
            raise UserError(
                f"the learngene {name!r} in {store.uri} is not one that this version can read ({detail}): make it again"
            ) from error

    def facts(self) -> dict[str, Any]:
        """Return the columns of `LEARNGENE_COLUMNS`; a learngene that started from another has cost that one too."""
        cost, start = (self.manifest.metadata.get(name) for name in ("cost", "start"))
        costs = {name: _number(cost, name.removeprefix("learngene_")) for name in LEARNGENE_COLUMNS[3:]}
        return {
            "learngene": self.manifest.name,
            "learngene_version": self.manifest.version,
            "learngene_parameters": self.learngene.parameters(),
            **{name: None if value is None else value + (_number(start, name) or 0) for name, value in costs.items()},
        }


def in_order_of(learngene: Learngene, classes: tuple[str, ...]) -> Learngene | None:
    """Return the learngene with its head in the order of these classes, by name; None if their names are others."""
    if learngene.labels == classes:
        return learngene
    order = order_of(learngene.labels, classes)
    return None if order is None else learngene.reordered(order, classes)


def _check_options(learngene: Learngene) -> None:
    """Raise ValueError if the method of a learngene cannot have its options."""
    try:
        method_class(learngene.method)(**learngene.options)
    except UserError:  # a method of a package that is not here
        return
    except ValidationError as error:
        raise ValueError(f"options.{first_error(error)}") from None


def _number(facts: object, name: str) -> int | float | None:
    """Return a cost that a manifest states; None where it is none."""
    return facts[name] if isinstance(facts, dict) and numbers_of(facts, name) else None

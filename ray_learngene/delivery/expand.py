"""Expand a learngene to plain timm folders of any size: no training, no Ray, no images."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import nn

from ray_learngene.ancestry.origin import log_license, stored_origin
from ray_learngene.config import DataConfig, ExpandConfig
from ray_learngene.config.numbers import parse_depths
from ray_learngene.data.open import open_image_sets
from ray_learngene.delivery.accuracy import UNKNOWN, Accuracy, known_accuracy
from ray_learngene.delivery.evaluate import evaluate_folder
from ray_learngene.delivery.features import FeatureScores
from ray_learngene.delivery.images import head_order
from ray_learngene.delivery.latency_limit import largest_within_latency
from ray_learngene.errors import NothingWithin, UserError
from ray_learngene.io.errors import Denied
from ray_learngene.io.folders import MODEL_MARK, check_free, new_folder
from ray_learngene.io.local import local_path
from ray_learngene.methods.base import Method
from ray_learngene.methods.registry import create_method
from ray_learngene.models.budgets import Budget, candidates, format_quantity, largest_within, parse_quantity
from ray_learngene.models.build import timm_arguments
from ray_learngene.models.card import model_card
from ray_learngene.models.costs import costs, require_room
from ray_learngene.models.origin import Origin, data_name
from ray_learngene.models.preprocessing import Preprocessing
from ray_learngene.models.sizes import outermost, size_name, sizes_of
from ray_learngene.models.specs import Spec
from ray_learngene.models.timm_folder import export_timm
from ray_learngene.progress import counted
from ray_learngene.provenance import provenance
from ray_learngene.store.learngenes import StoredLearngene
from ray_learngene.store.store import Store
from ray_learngene.store.timings import Timings

FACTS = "metrics.json"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Expansion:
    """A model folder that was expanded.

    Attributes:
        facts: What its `metrics.json` says: size, costs, where it comes from and what is known of its accuracy.
    """

    path: Path
    spec: Spec
    facts: Mapping[str, Any]


@dataclass(frozen=True)
class Expander:
    """A learngene that was read once, and the method that expands it.

    Attributes:
        rows: Rows of the store's descendants, for what is known of the accuracy of each size.
        origin: What the learngene was made of.
    """

    stored: StoredLearngene
    method: Method
    rows: Sequence[Mapping[str, Any]] = ()
    origin: Origin = field(default_factory=Origin)

    @classmethod
    def open(cls, store: Store, name: str, method: str | None = None) -> Expander:
        """Read a learngene and what its store knows of its descendants.

        Raises:
            UserError: there is no such learngene, or the method cannot expand it.
        """
        stored = StoredLearngene.load(store, name)
        chosen = create_method(method or stored.learngene.method)
        chosen.as_made(stored.learngene)
        try:
            known = store.entries(["descendant"])
        except Denied as denied:  # an expansion needs the right to read, not to list
            log.warning("the accuracy of sizes is not known: %s", denied)
            known = []
        rows = [entry.facts for entry in known if entry.facts.get("learngene") == name]
        return cls(stored, chosen, rows, stored_origin(stored.manifest, store))

    @property
    def name(self) -> str:
        return self.stored.manifest.name

    @cached_property
    def _labels(self) -> tuple[str, ...]:
        learngene = self.stored.learngene
        return learngene.labels or tuple(str(index) for index in range(learngene.spec.classes))

    @cached_property
    def _provenance(self) -> dict[str, Any]:
        return provenance()  # asks git, which takes longer than a small model

    def sizes(
        self,
        depths: str | None = None,
        widths: str | None = None,
        image_size: Any = None,
        depth_factor: str | None = None,
    ) -> list[Spec]:
        """Return the sizes of these depths and widths, by default of every depth and of the trained widths."""
        widths = widths or ",".join(map(str, self.method.trained_widths(self.stored.learngene)))
        return sizes_of(
            self.stored.learngene.spec,
            depths=depths,
            widths=widths,
            depth_factor=depth_factor,
            changes={"image": image_size},
        )

    def largest(self, limits: Mapping[str, str], choices: Sequence[Spec], timings: Timings | None = None) -> Spec:
        """Return the largest size within limits; of several, one that the learngene was trained for.

        Args:
            timings: Of the device whose latency is limited; without them it is that of the device at hand.

        Raises:
            NothingWithin: there is none; says by how much the nearest one exceeds each limit.
            UserError: a limit cannot be read.
        """
        budgets = {quantity: parse_quantity(quantity, text) for quantity, text in limits.items()}
        latency = budgets.pop("latency", None)
        found = candidates(choices, costs)
        try:
            if budgets:
                text = ",".join(map(str, budgets.values()))
                budget = Budget(text, tuple(limit for one in budgets.values() for limit in one.limits))
                largest_within(budget, found)
                found = [one for one in found if budget.admits(one.costs)]
            found = [one for one in found if not self.method.outside(self.stored.learngene, one.spec)] or found
            return (largest_within_latency(latency, found, timings) if latency else found[0]).spec
        except NothingWithin:
            raise
        except UserError as error:
            raise NothingWithin(str(error)) from None

    def notes(self, spec: Spec) -> list[str]:
        """Return what a user should know of an expansion to this size."""
        found = []
        if note := self.method.outside(self.stored.learngene, spec):
            found.append(note)
        if steps := self.method.fitting_steps:
            found.append(
                f"in a sweep {self.method.name} fits the model to its size for {counted(steps, 'step')}, "
                "which needs images: this one is not fitted"
            )
        return found

    def accuracy(self, spec: Spec) -> Accuracy | None:
        """Return what the store knows of the accuracy of an expansion to this size."""
        return known_accuracy(self.rows, self.stored, self.method, spec)

    def expand(self, spec: Spec, seed: int = 0) -> nn.Module:
        """Return the plain timm model of a size.

        Raises:
            UserError: the method cannot expand the learngene to it, or this machine has not enough memory for it.
        """
        require_room(spec)
        return self.method.expand(self.stored.learngene, spec, seed=seed)

    def check_images(self, config: DataConfig) -> None:
        """Check that an image set is there and has the learngene's classes.

        Raises:
            UserError: it is not, or has others.
        """
        images, classes = open_image_sets(config).val.classes, self.stored.learngene.spec.classes
        head_order(images, self._labels, classes, f"learngene {self.name!r}", config.data)

    def write(self, spec: Spec, out: Path, *, seed: int = 0, overwrite: bool = False) -> Expansion:
        """Expand to a timm model folder, which appears when it is whole.

        Raises:
            UserError: see `expand`, or the folder is there and stays.
        """
        model, accuracy, learngene = self.expand(spec, seed), self.accuracy(spec), self.stored.learngene
        settings = {**learngene.preprocessing, "image_size": spec.image}
        facts = {
            "learngene": self.name,
            "learngene_version": self.stored.manifest.version,
            "method": self.method.name,
            "options": self.method.as_made(learngene).model_dump(mode="json"),
            "spec": spec.model_dump(mode="json"),
            "seed": seed,
            **costs(spec),
            "tuned": False,
            "top1_untuned": accuracy and accuracy.top1,
            "top1_untuned_error": accuracy and accuracy.error,
            "accuracy": str(accuracy) if accuracy else UNKNOWN,
            "notes": self.notes(spec),
            "origin": self.origin.model_dump(mode="json"),
            **self._provenance,
        }
        with new_folder(out, overwrite, MODEL_MARK) as folder:
            export_timm(
                model,
                folder,
                labels=self._labels,
                preprocessing=Preprocessing(**settings),
                model_args=timm_arguments(spec),
                tag=f"{self.name}-{size_name(spec)}",
                origin=self.origin,
            )
            write_facts(folder, facts)
        return Expansion(out, spec, facts)


_MEASURED = {
    "top1_untuned": "top-1 without training",
    "knn": "top-1 of nearest images, without training",
    "linear": "top-1 of a linear probe, without training",
}


def write_facts(folder: Path, facts: Mapping[str, Any], measured: Mapping[str, str] | None = None) -> None:
    """Write `metrics.json` and the card of an expanded model.

    Args:
        measured: The image set and the split that its accuracy was measured on.
    """
    (folder / FACTS).write_text(json.dumps(facts, indent=2) + "\n")
    card = model_card(
        "expanded_card.md",
        name=f"{facts['learngene']}-{size_name(Spec(**facts['spec']))}",
        origin=Origin(**facts["origin"]),
        data=measured["data"] if measured else "",
        split=measured["split"] if measured else "",
        metrics={title: facts[name] for name, title in _MEASURED.items() if facts.get(name) is not None and measured},
        task="image-classification" if facts["spec"]["classes"] else "image-feature-extraction",
        row=facts,
    )
    (folder / "README.md").write_text(card)


def expand(config: ExpandConfig) -> list[Expansion]:
    """Expand a learngene to one size, to the largest within limits, or to every size that is named.

    Raises:
        UserError: the learngene, a size or a folder does not allow it; folders that were written stay whole.
        NothingWithin: no size is within the limits.
    """
    store = Store.of(config)
    store.check(write=False)
    expander = Expander.open(store, config.learngene, config.method)
    log_license(f"learngene {config.learngene}", expander.origin)
    source = expander.stored.learngene.spec
    if config.limits:
        choices = expander.sizes(config.depths, config.widths, config.image_size)
        timings = Timings.load(store, config.device) if config.device else None
        specs = [expander.largest(config.limits, choices, timings)]
    else:
        if config.depth and len(parse_depths(config.depth, "depth")) > 1:
            raise UserError(f"--depth {config.depth} names several sizes: give --depths")
        depths = config.depths or config.depth
        widths = config.widths or str(config.width or source.width)
        specs = expander.sizes(depths, widths, config.image_size, depth_factor=None if depths else "1")
    default = f"{config.learngene}-{'sizes' if config.many else size_name(specs[0])}"
    out = local_path(config.out or default)
    outs = {spec: out / size_name(spec) if config.many else out for spec in specs}
    for path in outs.values():
        check_free(path, config.overwrite, MODEL_MARK)
    if config.data:
        expander.check_images(config)
    for spec in outermost(specs) if config.many else ():
        expander.expand(spec)  # else a size that cannot be would end the call after others are written
    made = [expander.write(spec, path, seed=config.seed, overwrite=config.overwrite) for spec, path in outs.items()]
    return [_measured(one, config, config.batch_size) for one in made] if config.data else made


def _measured(one: Expansion, config: DataConfig, batch_size: int) -> Expansion:
    scores, data = evaluate_folder(one.path, config, batch_size), data_name(config.data)
    known: dict[str, Any]
    if isinstance(scores, FeatureScores):
        text = f"{scores} untuned, measured on {counted(scores.images, 'image')} of {data}"
        known = {"knn": scores.knn, "linear": scores.linear, "accuracy": text}
    else:
        accuracy = Accuracy(scores.top1, 0.0, f"measured on {counted(int(scores.images), 'image')} of {data}")
        known = {"top1_untuned": scores.top1, "top1_untuned_error": 0.0, "accuracy": str(accuracy)}
    facts = {**one.facts, **known}
    write_facts(one.path, facts, {"data": data, "split": config.validate_on})
    return Expansion(one.path, one.spec, facts)


def size_text(spec: Spec) -> str:
    """Return a size and its costs in a few words."""
    known = {name: format_quantity(name, value) for name, value in costs(spec).items()}
    return (
        f"width {spec.width}, depth {spec.layers}: {known['params']} parameters, {known['macs']} MACs, "
        f"{known['memory']} to run"
    )


def notes_of(made: Iterable[Expansion]) -> list[str]:
    """Return the notes of several expansions, each once."""
    return list(dict.fromkeys(note for one in made for note in one.facts["notes"]))

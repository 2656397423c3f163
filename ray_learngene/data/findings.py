"""All that is odd about an image set, in one list: what ends training, and what the user may not know."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from ray_learngene.config import DataConfig
from ray_learngene.data.check import ImageFacts, image_facts
from ray_learngene.data.image_set import ImageSet
from ray_learngene.data.open import open_image_sets
from ray_learngene.errors import UserError

_TINY = 8  # pixels of the shorter side
_HUGE = 50e6  # pixels
_USUAL_MODES = ("RGB", "RGBA", "L", "LA", "P")
_EXAMPLES = 3

Level = Literal["error", "note"]


@dataclass
class Finding:
    """One kind of thing that was found: an error ends training, a note does not."""

    level: Level
    kind: str
    split: str
    count: int = 0
    examples: list[str] = field(default_factory=list)

    def add(self, example: str) -> None:
        """Count one more; the first few are named."""
        self.count += 1
        if len(self.examples) < _EXAMPLES:
            self.examples.append(example)


@dataclass
class SplitCounts:
    """A split as training and `data convert` see it: without the images that cannot be read."""

    images: int
    unreadable: int
    classes: int
    smallest_class: int
    largest_class: int


@dataclass
class Inspection:
    """What `data check` knows of an image set."""

    data: str
    training: SplitCounts
    validation: SplitCounts
    findings: list[Finding]
    notes: list[str]

    @property
    def errors(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.level == "error"]


class _Findings:
    """Findings by kind and split, in the order in which they came up."""

    def __init__(self) -> None:
        self.all: dict[tuple[str, str], Finding] = {}

    def add(self, level: Level, kind: str, split: str, example: str) -> None:
        self.all.setdefault((kind, split), Finding(level, kind, split)).add(example)


def inspect_image_sets(config: DataConfig) -> Inspection:
    """Read an image set and list all that is odd about it.

    Raises:
        UserError: the set cannot be opened at all.
    """
    problems: list[str] = []
    sets = open_image_sets(config, problems.append)
    found = _Findings()
    for problem in problems:
        found.add("error", "classes", "", problem)
    seen: dict[bytes, tuple[str, int, str]] = {}  # by content: split, label and name of the first such image
    counts = {}
    for split, part in (("training", sets.train), ("validation", sets.val)):
        unreadable = np.zeros(len(part), dtype=bool)
        if config.check_images != "off":
            for index, facts in enumerate(image_facts(part, config.check_images)):
                unreadable[index] = bool(facts.complaint)
                _judge(found, config, split, part, index, facts)
                _compare(found, seen, split, part, index, facts)
        counts[split] = _count(found, split, part, unreadable)
    return Inspection(
        config.data, counts["training"], counts["validation"], [*found.all.values()], (sets.note or "").splitlines()
    )


def _judge(found: _Findings, config: DataConfig, split: str, part: ImageSet, index: int, facts: ImageFacts) -> None:
    name = part.describe(index)
    if facts.complaint:
        reason = facts.complaint.removeprefix("cannot read image ").partition("; ")[0]
        found.add("error" if config.unreadable == "fail" else "note", "unreadable", split, reason)
        return
    shown = f"{name} ({facts.size[0]} x {facts.size[1]})"
    if min(facts.size) < _TINY:
        found.add("note", f"tiny, a side below {_TINY} px", split, shown)
    if facts.size[0] * facts.size[1] > _HUGE:
        found.add("note", f"huge, above {_HUGE / 1e6:g} megapixels", split, shown)
    if facts.frames > 1:
        found.add("note", "of several frames; the first is used", split, name)
    if facts.transparent:
        found.add("note", "transparent; that is dropped", split, name)
    if facts.mode not in _USUAL_MODES:
        found.add("note", f"mode {facts.mode}; converted to RGB", split, name)


def _compare(
    found: _Findings,
    seen: dict[bytes, tuple[str, int, str]],
    split: str,
    part: ImageSet,
    index: int,
    facts: ImageFacts,
) -> None:
    if not facts.digest:
        return
    name, label = part.describe(index), int(part.labels[index])
    first = seen.setdefault(facts.digest + repr(facts.size).encode(), (split, label, name))
    if first[2] == name:
        return
    pair = f"{name} = {first[2]}"
    if first[0] != split:
        found.add("note", "also in the training split", split, pair)
    if first[1] != label:
        found.add("note", "also in another class", split, pair)


def _count(found: _Findings, split: str, part: ImageSet, unreadable: np.ndarray) -> SplitCounts:
    members = np.bincount(part.labels[~unreadable], minlength=len(part.classes))
    listed = np.bincount(part.labels, minlength=len(part.classes))
    for name, count, all_of_it in zip(part.classes, members, listed, strict=True):
        if split == "training" and all_of_it and not count:
            found.add("error", "class without a readable image", split, name)
        if split == "training" and count == 1:
            found.add("note", "class of one image", split, name)
        if split == "validation" and not all_of_it:
            found.add("note", "class without an image", split, name)
    smallest, largest = (int(members.min()), int(members.max())) if len(members) else (0, 0)
    return SplitCounts(len(part) - int(unreadable.sum()), int(unreadable.sum()), len(members), smallest, largest)


def refuse_errors(inspection: Inspection) -> None:
    """End with what would end training.

    Raises:
        UserError: there is something.
    """
    if errors := inspection.errors:
        kinds = ", ".join(f"{error.kind} ({error.count})" for error in errors)
        raise UserError(f"{inspection.data} cannot be trained on as it is: {kinds}; mend what the table calls an error")

"""Group trials with the same views into packs that one process trains together, within its memory."""

from __future__ import annotations

import heapq
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

_SLACK = 1.05  # how much later than separate trials packs may end, by prediction, where images cost no time at all


@dataclass(frozen=True)
class Load:
    """What one trial needs of its process.

    Attributes:
        trial: What it is the load of.
        views: Seed of views; only those of the same one can share a stream.
        work: Predicted duration without reading images, in any unit.
        kept: Bytes from its start to its end.
        step: Bytes besides in its own turn.
    """

    trial: Any
    views: int
    work: float
    kept: int
    step: int


@dataclass(frozen=True)
class Place:
    """The processes and the memory for the trials.

    Attributes:
        count: How many processes run at once.
        memory: Bytes of each for its pack.
    """

    count: int
    memory: float


@dataclass
class Pack:
    """Loads that one process trains together, with their sums (of the steps, the largest)."""

    loads: list[Load] = field(default_factory=list)
    work: float = 0.0
    kept: int = 0
    step: int = 0

    def add(self, load: Load) -> Pack:
        self.loads.append(load)
        self.work, self.kept, self.step = self.work + load.work, self.kept + load.kept, max(self.step, load.step)
        return self

    def has_room(self, load: Load, memory: float, most: int | None) -> bool:
        """Return whether a load may be added; the first one always may."""
        fits = self.kept + load.kept + max(self.step, load.step) <= memory
        return not self.loads or (fits and (most is None or len(self.loads) < most))


def pack(loads: Sequence[Load], place: Place, most: int | None = None) -> list[Pack]:
    """Group loads into packs, and return the packs with most work first.

    The loads of a pack have one seed of views, so their images are read once. Few packs read least. Too few would leave
    places idle while one place trains a long pack. So there are as few packs as still end about when separate trials
    would. With one seed that is one pack for each place, filled evenly.

    Args:
        most: The most loads of a pack. There are then as few packs as that allows, even if places stay idle. None: see
            above.

    Returns:
        Packs within the memory of a place. A load that exceeds it is alone.
    """
    alone = _longest_first(Pack().add(load) for load in loads)
    if most == 1 or (most is None and len(loads) <= place.count):
        return alone
    groups: dict[int, list[Load]] = defaultdict(list)
    for each in alone:
        groups[each.loads[0].views] += each.loads
    packs = {views: _split(group, 1, place.memory, most) for views, group in groups.items()}
    latest = _SLACK * makespan(alone, place.count)
    while True:
        together = _longest_first(each for some in packs.values() for each in some)
        busy = len(together) >= min(place.count, len(loads))
        if most is not None or (busy and makespan(together, place.count) <= latest):
            return together
        views = next(each.loads[0].views for each in together if len(each.loads) > 1)
        packs[views] = _split(groups[views], len(packs[views]) + 1, place.memory, most)


def makespan(packs: Iterable[Pack], places: int) -> float:
    """When the last pack ends, where each starts on the place that is free first."""
    ends = [0.0] * places
    for each in packs:
        heapq.heapreplace(ends, ends[0] + each.work)
    return max(ends)


def _longest_first(packs: Iterable[Pack]) -> list[Pack]:
    return sorted(packs, key=lambda each: each.work, reverse=True)


def _split(group: Sequence[Load], number: int, memory: float, most: int | None) -> list[Pack]:
    """Split loads, largest first, evenly into so many packs, or into the next higher number for which there is room."""
    least = math.ceil(len(group) / most) if most else 1
    number = max(number, least, math.ceil(sum(load.kept for load in group) / max(1.0, memory)))
    while True:
        packs = [Pack() for _ in range(min(number, len(group)))]
        for load in group:
            room = [each for each in packs if each.has_room(load, memory, most)]
            if not room:
                break
            min(room, key=lambda each: (each.work, len(each.loads))).add(load)
        else:
            return packs
        number += 1

"""The largest size within a latency: by the record of a device, or by timing as few sizes as possible here."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Sequence

from ray_learngene.delivery.latency import device_name, measure_latency
from ray_learngene.errors import NothingWithin
from ray_learngene.models.budgets import Budget, Candidate, format_quantity
from ray_learngene.models.device import resolve_device
from ray_learngene.models.specs import Spec
from ray_learngene.store.timings import Timings

log = logging.getLogger(__name__)


def largest_within_latency(limit: Budget, choices: Sequence[Candidate], timings: Timings | None) -> Candidate:
    """The first choice within a limit on latency; logs its latency, and where that comes from.

    Without timings, sizes are timed here. Of each width they are halved until the largest one is found, because a
    deeper model takes longer.

    Args:
        choices: The largest first.

    Raises:
        NothingWithin: No choice is; says what the fastest one takes.
    """
    where = f"on {timings.device}" if timings else _here()
    known: dict[Spec, float] = {}

    def admits(one: Candidate) -> bool:
        if one.spec not in known:
            known[one.spec] = timings.of(one.spec).milliseconds if timings else measure_latency(one.spec).median_ms
        return limit.admits({"latency": known[one.spec]})

    fitting = choices if timings else [one for some in _by_width(choices) for one in _first(some, admits)]
    position = {one.spec: number for number, one in enumerate(choices)}
    for one in sorted(fitting, key=lambda one: position[one.spec]):
        if admits(one):
            log.info(
                f"latency {timings.of(one.spec) if timings else format_quantity('latency', known[one.spec])} {where}"
            )
            return one
    fastest = format_quantity("latency", min(known.values()))
    raise NothingWithin(f"budget {limit}: nothing meets it; the fastest size takes {fastest} {where}")


def _by_width(choices: Sequence[Candidate]) -> list[list[Candidate]]:
    groups: dict[int, list[Candidate]] = defaultdict(list)
    for one in choices:
        groups[one.spec.width].append(one)
    return list(groups.values())


def _first(choices: Sequence[Candidate], admits: Callable[[Candidate], bool]) -> list[Candidate]:
    """The first of the choices that is admitted, if all after it are; none if the last one is not."""
    if not admits(choices[-1]):
        return []
    low, high = 0, len(choices) - 1
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if admits(choices[middle]) else (middle + 1, high)
    return [choices[high]]


def _here() -> str:
    device = resolve_device()
    how = "eager torch, one thread, CPU time" if device.type == "cpu" else "eager torch"
    return f"on this machine ({device_name(device)}, {how}); give --device for another one"

"""Rows of results tables, validated when they are read, because a store can hold anything."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, FiniteFloat, StringConstraints, ValidationError

from ray_learngene.progress import counted

log = logging.getLogger(__name__)

Text = Annotated[str, StringConstraints(max_length=1000)]


class _Row(BaseModel):
    """The columns that `list`, `pull` and the leaderboard compute with; others may hold any JSON scalar."""

    model_config = ConfigDict(strict=True, extra="allow")

    descendant: Text
    sweep: Text
    status: Text
    arm: Text
    width: int
    depth: int
    image: int | Text  # a text if images are not square or not RGB
    seed: int
    lr: FiniteFloat
    params: FiniteFloat
    macs: FiniteFloat
    memory: FiniteFloat
    latency: FiniteFloat
    top1: FiniteFloat
    top1_untuned: FiniteFloat
    top1_epoch1: FiniteFloat
    seconds: FiniteFloat
    classes: int | None = None
    epochs: int | None = None


def mapping(value: object) -> Mapping[str, Any]:
    """Return a mapping as it is; an empty one in the place of anything else."""
    return value if isinstance(value, dict) else {}


def numbers_of(row: Mapping[str, Any], *names: str) -> dict[str, float] | None:
    """Return the named columns as finite numbers; None where one is missing or is none."""
    values = {name: row.get(name) for name in names}
    try:
        found = {name: float(value) for name, value in values.items() if isinstance(value, int | float)}
    except OverflowError:
        return None
    return found if len(found) == len(names) and all(abs(value) < float("inf") for value in found.values()) else None


def measured_on(facts: Mapping[str, Any]) -> str:
    """Return the device and the conditions of a latency, in a few words."""
    threads = facts.get("latency_threads")
    words = [f"{facts.get('latency_device')}, batch {facts.get('latency_batch')}, {facts.get('latency_dtype')}"]
    words += [] if threads is None else [counted(threads, "thread")]
    words += ["CPU time"] if facts.get("latency_clock") == "cpu" else []
    return ", ".join(words)


def usable(row: Mapping[str, Any], where: str) -> bool:
    """Return whether a row can stand in a results table; if not, says so in one line."""
    try:
        _Row.model_validate(row)
        odd = next((name for name, value in row.items() if isinstance(value, dict | list)), None)
        if odd is None:
            return True
        reason = f"{odd}: not a number or a text"
    except (ValidationError, OverflowError) as error:
        first = error.errors()[0] if isinstance(error, ValidationError) else None
        reason = f"{first['loc'][0]}: {first['msg']}" if first else str(error)
    log.warning("left out: the row of %s (%s)", where, reason)
    return False

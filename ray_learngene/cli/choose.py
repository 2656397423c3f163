"""Choose the most accurate descendant of a store within limits."""

from __future__ import annotations

import json
import logging
from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ray_learngene.config import PullConfig
from ray_learngene.errors import NothingWithin, UserError
from ray_learngene.models.budgets import Budget, format_quantity, parse_quantity
from ray_learngene.progress import counted
from ray_learngene.store.manifest import Manifest
from ray_learngene.store.rows import measured_on, numbers_of
from ray_learngene.store.store import Entry, Store
from ray_learngene.store.timings import Timings

log = logging.getLogger(__name__)

LIMITED = ("params", "macs", "memory", "latency")


def select_descendant(config: PullConfig, store: Store) -> Manifest:
    """Return the most accurate descendant within every limit; of equals, the one with fewer parameters.

    Accuracies are compared if the classes and the validation images are the same. Latencies are compared if the device,
    batch, dtype and number of threads are the same.

    Raises:
        UserError: there is more than one such set to choose from; lists them.
        NothingWithin: there is none; says which limit excludes the smallest.
    """
    limits = [parse_quantity(name, value) for name, value in config.limits.items()]
    timings = device_timings(config, store)
    known = {entry.name: entry for entry in store.entries(["descendant"], under=config.sweep or "")}
    while True:
        best = _best(list(known.values()), config, limits, store.uri, timings)
        manifest = store.look_up("descendant", best.name)
        # The index may be behind by what was changed by hand, or since it was read; the manifest is what counts.
        if manifest is not None and manifest.version == best.version and manifest.created == best.created:
            return manifest
        del known[best.name]
        if manifest is not None:
            known[best.name] = Entry.of(manifest)


def _best(known: list[Entry], config: PullConfig, limits: list[Budget], uri: str, timings: Timings | None) -> Entry:
    found = [
        one
        for one in known
        if numbers_of(one.facts, "top1", *LIMITED)
        and config.arm in (None, one.facts.get("arm"))
        and (config.data is None or _same_data(config.data, one.facts.get("data")))
        and (config.learngene is None or config.learngene == one.facts.get("learngene"))
        and (config.format is None or config.format in str(one.facts.get("exports")).split(","))
    ]
    if not found:
        where = f"sweep {config.sweep!r} in {uri}" if config.sweep else uri
        wanted = {"of arm": config.arm, "on": config.data, "of learngene": config.learngene, "with": config.format}
        which = "".join(f" {word} {value!r}" for word, value in wanted.items() if value)
        raise NothingWithin(f"no descendants{which} in {where}: see `learngene list`")
    _require_one(_label_sets(found), f"the descendants in {uri} have different label sets", "--sweep or --data")
    if config.max_latency and timings:
        found = _on_device(found, timings)
    elif config.max_latency:
        found = [one for one in found if config.device is None or config.device in str(one.facts.get("latency_device"))]
        if not found:
            raise NothingWithin(no_record(uri, str(config.device)))
        _require_one(
            _grouped(found, lambda one: measured_on(one.facts)),
            f"latencies in {uri} were measured in different ways",
            "--device or --sweep",
        )
    within = [one for one in found if all(limit.admits(one.facts) for limit in limits)]
    if not within:
        raise NothingWithin(
            f"none of {counted(len(found), 'descendant')} is within {', '.join(map(str, limits))}: "
            f"{_nearest(found, limits)}"
        )
    # sizes that the learngene was not trained for are taken where nothing else is within the limits
    best, trained = (
        max(few, key=lambda one: (one.facts["top1"], -one.facts["params"]))
        for few in (within, [one for one in within if not one.facts.get("outside")] or within)
    )
    if best is not trained and best.facts["top1"] > trained.facts["top1"]:
        log.info(
            f"left out: descendants/{best.name}, top-1 {best.facts['top1']:.2f} %, whose learngene was not "
            "trained for this size (pull it by name)"
        )
    return trained


def no_record(uri: str, device: str) -> str:
    """Say that a store knows no latency of a device."""
    return (
        f"no latency in {uri} was measured on {device!r}: import a record of it (`learngene measure`), "
        "or see `learngene list`"
    )


def device_timings(config: PullConfig, store: Store) -> Timings | None:
    """Return the record of the device whose latency is limited; None where the store has none of that name."""
    if config.max_latency and config.device and Timings.has(store, config.device):
        return Timings.load(store, config.device)
    return None


def _on_device(found: list[Entry], timings: Timings) -> list[Entry]:
    """Return the descendants with the latency that a record tells of each. Others are left out.

    Raises:
        UserError: it tells nothing of any; says why.
    """
    timed: list[Entry] = []
    reason: UserError | None = None
    for one in found:
        try:
            latency = timings.of(one.facts)
        except UserError as error:
            reason = error
            continue
        timed.append(replace(one, row=json.dumps({**one.facts, "latency": latency.milliseconds})))
    if not timed and reason:
        raise reason
    return timed


def _same_data(wanted: str, data: object) -> bool:
    return isinstance(data, str) and Path(wanted).name == Path(data).name


def _label_sets(found: Iterable[Entry]) -> dict[Hashable, list[Entry]]:
    """Return the descendants by label set and validation images.

    Older ones do not say which validation images; they join the only set with their labels and image set.
    """
    sets: dict[Hashable, list[Entry]] = defaultdict(list)
    older: dict[Hashable, list[Entry]] = defaultdict(list)
    for one in found:
        labels, validation = (_text(one, name) for name in ("labels", "validation"))
        if labels and validation:
            sets[labels, validation].append(one)
        else:
            older["older", labels, validation, _text(one, "classes"), _text(one, "data")].append(one)
    near: dict[Hashable, list[Hashable]] = {
        key: [each for each, members in sets.items() if _joins(few[0], members[0])] for key, few in older.items()
    }
    for key, few in older.items():
        sets[near[key][0] if len(near[key]) == 1 else key] += few
    return sets


def _joins(older: Entry, one: Entry) -> bool:
    """Return whether an older descendant that names its labels has those of another one, and its image set."""
    labels, data = _text(older, "labels"), _text(older, "data")
    return (
        labels is not None and labels == _text(one, "labels") and (not data or _same_data(data, one.facts.get("data")))
    )


def _text(one: Entry, name: str) -> str | None:
    value = one.facts.get(name)
    return str(value) if isinstance(value, str | int) else None


def _grouped(found: Iterable[Entry], key: Any) -> dict[Hashable, list[Entry]]:
    groups: dict[Hashable, list[Entry]] = defaultdict(list)
    for one in found:
        groups[key(one)].append(one)
    return groups


def _require_one(groups: Mapping[Hashable, list[Entry]], what: str, choose: str) -> None:
    if len(groups) < 2:
        return
    listed = []
    for key, members in list(groups.items())[:5]:
        facts = members[0].facts
        label = (
            key
            if isinstance(key, str)
            else f"{counted(facts.get('classes'), 'class')} of {facts.get('data', 'images')}"
        )
        listed.append(f"{label}: {', '.join(sorted({one.name.split('/')[0] for one in members})[:5])}")
    raise UserError(f"{what} ({'; '.join(listed)}): choose with {choose}")


def _nearest(found: list[Entry], limits: list[Budget]) -> str:
    rows = [one.facts for one in found]
    least = [
        f"the least {limit.limits[0].quantity} is {format_quantity(limit.limits[0].quantity, smallest)}"
        for limit in limits
        for smallest in [min(row[limit.limits[0].quantity] for row in rows)]
        if not limit.limits[0].admits(smallest)
    ]
    return ", ".join(least) or "no descendant meets all of them at once"

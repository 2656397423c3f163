"""`learngene pull`: the most accurate descendant within limits, or an artefact by name, verified."""

from __future__ import annotations

import json
import logging
from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ray_learngene.cli.artefacts import KINDS, parse_artefact
from ray_learngene.config import PullConfig
from ray_learngene.config.delivery import EXPORT_FORMATS
from ray_learngene.errors import NothingWithin, UserError
from ray_learngene.io.errors import Denied
from ray_learngene.models.budgets import Budget, format_quantity, parse_quantity
from ray_learngene.progress import counted
from ray_learngene.store.manifest import FOLDERS, Manifest
from ray_learngene.store.rows import measured_on, numbers_of
from ray_learngene.store.store import Entry, Store
from ray_learngene.store.timings import Timings
from ray_learngene.terminal import one_line

log = logging.getLogger(__name__)

_LIMITS = {"params": "max_params", "macs": "max_macs", "memory": "max_memory", "latency": "max_latency"}


def select_descendant(config: PullConfig, store: Store) -> Manifest:
    """Return the most accurate descendant within every limit; of equals, the one with fewer parameters.

    Accuracies are compared if the classes and the validation images are the same. Latencies are compared if the device,
    batch, dtype and number of threads are the same.

    Raises:
        UserError: there is more than one such set to choose from; lists them.
        NothingWithin: there is none; says which limit excludes the smallest.
    """
    limits = [parse_quantity(name, value) for name, flag in _LIMITS.items() if (value := getattr(config, flag))]
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
        if numbers_of(one.facts, "top1", *_LIMITS)
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


def pull(config: PullConfig) -> Path:
    """Bring an artefact to a local folder, every file verified against its hash; or expand a learngene to it.

    Returns:
        The folder. Of a descendant, an ancestry or an expansion it is a timm model folder.

    Raises:
        UserError: see the message; the folder is then as it was.
    """
    store = Store.of(config)
    store.check(write=False)
    if config.artefact:
        if config.limits or config.sweep or config.arm or config.data or config.learngene or config.expand:
            raise UserError(
                f"pull {config.artefact}: a named artefact takes no limits and no --expand; leave out the name or them"
            )
        folder, name = parse_artefact(config.artefact)
        if folder == "softlabels":
            raise UserError("soft labels are not pulled: `learngene distill --soft-labels` reads them from the store")
        if folder == "sweeps":
            raise UserError("a sweep is not pulled whole: pull one of its descendants, or read its results.parquet")
        manifest = store.manifest(KINDS[folder], name)
    elif config.learngene:
        chosen = _trained_or_expanded(config, store)
        if isinstance(chosen, Path):
            return chosen
        manifest = chosen
    elif config.expand:
        raise UserError("--expand needs --learngene NAME: there is no other way to know which one")
    else:
        manifest = select_descendant(config, store)
    others = EXPORT_FORMATS if manifest.kind == "descendant" and not config.format else ()
    fetched = manifest.below(config.format) if config.format else manifest.without(others)
    if fetched is None and manifest.kind == "learngene":
        raise UserError(
            f"learngenes/{manifest.name} is no model to export: `learngene expand {manifest.name}` makes one, then "
            f"`learngene export FOLDER --format {config.format}`"
        )
    if fetched is None:
        raise UserError(
            f"{FOLDERS[manifest.kind]}/{manifest.name} was published without {config.format}: pull it without --format "
            f"and run `learngene export FOLDER --format {config.format}`"
        )
    name = manifest.name.split("/")[-1]
    out = Path(config.out or (f"{name}-{config.format}" if config.format else name))
    path = store.download(manifest.kind, manifest.name, out, config.overwrite, config.format, others)
    size = format_quantity("memory", fetched.bytes)
    what = f"{config.format} of " if config.format else ""
    log.info(f"pulled {what}{FOLDERS[manifest.kind]}/{manifest.name} ({size}) to {path}")
    origin = manifest.metadata.get("origin")
    if isinstance(origin, dict) and origin.get("license"):
        log.info(f"license: {one_line(origin['license'], 100)}")
    row = Entry.of(manifest).facts
    if numbers_of(row, "top1", *_LIMITS):  # else it has no such row: a learngene, or what a script of its own published
        log.info(
            f"{format_quantity('params', row['params'])} parameters, {format_quantity('macs', row['macs'])} MACs, "
            f"{row['latency']:.3g} ms on {measured_on(row)}, top-1 {row['top1']:.2f} %"
        )
        if timings := device_timings(config, store):
            log.info(f"on {timings.device}: {timings.of(row)} ({timings.text})")
        if row.get("exports") and not config.format:
            log.info(f"exports: {str(row['exports']).replace(',', ', ')} (--format fetches one)")
        if row.get("outside"):
            log.info(f"note: {row['outside']}")
    return path


def _trained_or_expanded(config: PullConfig, store: Store) -> Manifest | Path:
    """Print the best trained descendant and the largest expansion within the limits, and choose one.

    Returns:
        The descendant, or the folder of the expansion.
    """
    trained: Manifest | None = None
    try:
        trained = select_descendant(config, store)
        log.info(f"trained    {_trained_text(trained)}")
    except NothingWithin as nothing:
        log.info(f"trained    {nothing}")
    except Denied as denied:  # an expansion needs no list of the trained ones
        if not config.expand:
            raise
        log.info(f"trained    {denied}")
    try:
        from ray_learngene.delivery.expand import UNKNOWN, Expander, size_text
        from ray_learngene.delivery.folders import local_path
        from ray_learngene.models.sizes import size_name
    except ModuleNotFoundError:
        if trained is None or config.expand:
            raise
        log.info("expanded   (what can be expanded is only known where torch and timm are installed)")
        return trained
    expander = Expander.open(store, str(config.learngene))
    timings = device_timings(config, store)
    try:
        if config.max_latency and config.device and not timings:
            raise NothingWithin(no_record(store.uri, config.device))
        spec = expander.largest(config.limits, expander.sizes(), timings)
    except NothingWithin as nothing:
        if trained is None or config.expand:
            raise
        log.info(f"expanded   {nothing}")
        return trained
    log.info(f"expanded   {size_text(spec)}, {expander.accuracy(spec) or UNKNOWN}")
    for note in expander.notes(spec):
        log.info(f"           note: {note}")
    if config.format:
        if trained is None:
            raise NothingWithin(
                f"no trained descendant with {config.format} is within the limits: expand and export one"
            )
        return trained
    if trained is not None and not config.expand:
        log.info("taking the trained one (--expand takes the other)")
        return trained
    out = local_path(config.out or f"{config.learngene}-{size_name(spec)}")
    made = expander.write(spec, out, overwrite=config.overwrite)
    log.info(f"expanded {config.learngene} to {made.path}")
    return made.path


def _trained_text(manifest: Manifest) -> str:
    row = Entry.of(manifest).facts
    costs = {name: format_quantity(name, row[name]) for name in ("params", "macs", "memory")}
    return (
        f"{manifest.name}: {costs['params']} parameters, {costs['macs']} MACs, {costs['memory']} to run, "
        f"top-1 {row['top1']:.2f} % on {row.get('data')}"
    )

"""What is in a store: list it, show one artefact, pull one by name or the best one within limits."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from ray_learngene.config import ListConfig, PullConfig, ShowConfig
from ray_learngene.errors import UserError
from ray_learngene.models.budgets import Budget, format_quantity, parse_quantity
from ray_learngene.store.manifest import FOLDERS, Kind, Manifest
from ray_learngene.store.store import Entry, Store
from ray_learngene.terminal import print_columns

_KINDS: dict[str, Kind] = {"learngenes": "learngene", "ancestries": "ancestry", "descendants": "descendant"}
_LIMITS = {"params": "max_params", "macs": "max_macs", "memory": "max_memory", "latency": "max_latency"}


def parse_artefact(text: str) -> tuple[str, str]:
    """`learngenes/x` as (folder, name).

    Raises:
        UserError: the text does not begin with a folder of the store.
    """
    folder, _, name = text.strip("/").partition("/")
    folders = [*_KINDS, "sweeps", "softlabels"]
    if folder not in folders or not name:
        raise UserError(f"{text!r}: write KIND/NAME, with KIND one of {', '.join(folders)}")
    return folder, name


def select_descendant(config: PullConfig, store: Store) -> Manifest:
    """The most accurate descendant within every limit; of equals, the one with fewer parameters.

    Raises:
        UserError: there is none; says which limit excludes the smallest.
    """
    limits = [parse_quantity(name, value) for name, flag in _LIMITS.items() if (value := getattr(config, flag))]
    known = {entry.name: entry for entry in store.entries(["descendant"], under=config.sweep or "")}
    while True:
        best = _best(list(known.values()), config, limits, store.uri)
        manifest = store.look_up("descendant", best.name)
        # The index may be behind by what was changed by hand, or since it was read; the manifest is what counts.
        if manifest is not None and manifest.version == best.version and manifest.created == best.created:
            return manifest
        del known[best.name]
        if manifest is not None:
            known[best.name] = Entry.of(manifest)


def _best(known: list[Entry], config: PullConfig, limits: list[Budget], uri: str) -> Entry:
    found = [one for one in known if _comparable(one.facts) and config.arm in (None, one.facts.get("arm"))]
    if not found:
        where = f"sweep {config.sweep!r} in {uri}" if config.sweep else uri
        raise UserError(
            f"no descendants{f' of arm {config.arm!r}' if config.arm else ''} in {where}: see `learngene list`"
        )
    tasks: dict[int, set[str]] = {}
    for one in found:
        if isinstance(classes := one.facts.get("classes"), int):  # a script of somebody's own need not say
            tasks.setdefault(classes, set()).add(one.name.split("/")[0])
    if len(tasks) > 1:
        told = "; ".join(f"{classes} classes: {', '.join(sorted(names))}" for classes, names in tasks.items())
        raise UserError(f"the descendants in {uri} have different numbers of classes ({told}): choose with --sweep")
    within = [one for one in found if all(limit.admits(one.facts) for limit in limits)]
    if not within:
        raise UserError(
            f"none of {len(found)} descendants is within {', '.join(map(str, limits))}: {_nearest(found, limits)}"
        )
    return max(within, key=lambda one: (one.facts["top1"], -one.facts["params"]))


def _comparable(facts: dict[str, Any]) -> bool:
    """Whether a row says in numbers what descendants are chosen by."""
    return all(isinstance(facts.get(name), int | float) for name in ("top1", *_LIMITS))


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
    """Bring an artefact to a local folder, every file verified against its hash.

    Returns:
        The folder. Of a descendant or an ancestry it is a timm model folder.
    """
    store = Store.of(config)
    store.check(write=False)
    if config.artefact:
        if any(getattr(config, flag) for flag in _LIMITS.values()) or config.sweep or config.arm:
            raise UserError(
                f"pull {config.artefact}: a named artefact takes no limits; leave out the name or the limits"
            )
        folder, name = parse_artefact(config.artefact)
        if folder == "softlabels":
            raise UserError("soft labels are not pulled: `learngene distill --soft-labels` reads them from the store")
        if folder == "sweeps":
            raise UserError("a sweep is not pulled whole: pull one of its descendants, or read its results.parquet")
        manifest = store.manifest(_KINDS[folder], name)
    else:
        manifest = select_descendant(config, store)
    out = Path(config.out or manifest.name.split("/")[-1])
    path = store.download(manifest.kind, manifest.name, out, overwrite=config.overwrite)
    size = format_quantity("memory", manifest.bytes)
    print(f"pulled {FOLDERS[manifest.kind]}/{manifest.name} ({size}) to {path}", flush=True)
    row = Entry.of(manifest).facts
    if _comparable(row):  # else it has no such row: a learngene, or a descendant that a script of its own published
        print(
            f"{format_quantity('params', row['params'])} parameters, {format_quantity('macs', row['macs'])} MACs, "
            f"{row['latency']:.3g} ms on {row.get('latency_device')}, top-1 {row['top1']:.2f} %"
        )
    return path


def print_list(config: ListConfig) -> None:
    """Print every artefact of a store."""
    store = Store.of(config)
    store.check(write=config.rebuild)
    if config.rebuild:
        print(f"the index of {store.uri} is made anew of {store.index.rebuild():,} manifests", flush=True)
    rows = [_line(entry) for entry in store.entries()]
    rows += [
        (f"softlabels/{key}", "-", "-", format_quantity("memory", facts["bytes"]), _minute(facts["created"]))
        for key, facts in summaries(store).items()
    ]
    rows += [(f"sweeps/{name}", "-", "-", "-", "-") for name in store.sweeps()]
    if not rows:
        print(f"store {store.uri} is empty")
        return
    print(f"store {store.uri}")
    print_columns(("artefact", "parameters", "top-1 %", "size", "made"), rows, right=(1, 2, 3))


def _line(entry: Entry) -> tuple[str, ...]:
    params, top1 = (entry.facts.get(name) for name in ("params", "top1"))
    return (
        f"{FOLDERS[entry.kind]}/{entry.name}",
        format_quantity("params", params) if isinstance(params, int | float) else "-",
        f"{top1:.2f}" if isinstance(top1, int | float) else "-",
        format_quantity("memory", entry.size),
        _minute(entry.created),
    )


def _minute(created: str) -> str:
    return created[:16].replace("T", " ")


def print_artefact(config: ShowConfig) -> None:
    """Print everything known about one artefact as JSON, or a sweep's leaderboard."""
    store = Store.of(config)
    store.check(write=False)
    folder, name = parse_artefact(config.artefact)
    if folder == "sweeps":
        _print_sweep(store, name)
        return
    if folder == "softlabels":
        found = summaries(store)
        if name not in found:
            raise UserError(f"no soft labels {name!r} in {store.uri}: see `learngene list`")
        print(json.dumps(found[name], indent=2))
        return
    manifest = store.manifest(_KINDS[folder], name)
    print(json.dumps(manifest.model_dump(mode="json"), indent=2))


def _print_sweep(store: Store, name: str) -> None:
    from ray_learngene.sweep.results import print_leaderboard, read_settings, sweep_table

    settings = read_settings(store, name)
    if settings is None:
        raise UserError(f"no sweep {name!r} in {store.uri}: see `learngene list`")
    print_leaderboard(sweep_table(store, name), settings["budgets"])


def summaries(store: Store) -> dict[str, dict[str, Any]]:
    """Every cache of a store by its key: what it depends on, how much is there and what that cost."""
    grouped: dict[str, list[Manifest]] = defaultdict(list)
    for manifest in store.manifests("softlabels"):
        grouped[manifest.name.partition("/")[0]].append(manifest)
    return {
        key: {
            "facts": parts[0].metadata["facts"],
            "epochs": len({part.metadata["epoch"] for part in parts}),
            "views": sum(part.metadata["views"] for part in parts),
            "bytes": sum(part.bytes for part in parts),
            "cost": {name: sum(part.metadata["cost"][name] for part in parts) for name in ("images", "teacher_flops")},
            "created": max(part.created for part in parts),
        }
        for key, parts in grouped.items()
    }

"""`learngene list`: what a store holds."""

from __future__ import annotations

import json
import logging
from collections import defaultdict
from typing import Any

from ray_learngene.config import ListConfig
from ray_learngene.errors import UserError
from ray_learngene.models.budgets import format_quantity
from ray_learngene.progress import counted
from ray_learngene.store.manifest import FOLDERS, Manifest
from ray_learngene.store.rows import numbers_of
from ray_learngene.store.store import Entry, Store
from ray_learngene.terminal import one_line, print_columns

log = logging.getLogger(__name__)


def print_list(config: ListConfig) -> None:
    """Print every artefact of a store."""
    store = Store.of(config)
    store.check(write=False)
    if config.rebuild:
        print(f"the index of {store.uri} is rebuilt from {counted(store.index.rebuild(), 'manifest')}", flush=True)
    if config.as_json:
        listed = [
            {"kind": one.kind, "name": one.name, "version": one.version, "created": one.created, "bytes": one.size}
            | {"facts": one.facts}
            for one in store.entries()
        ]
        print(json.dumps({"store": store.uri, "artefacts": listed, "sweeps": list(store.sweeps())}, indent=2))
        return
    rows = [_line(entry) for entry in store.entries()]
    nothing = ("-",) * 7
    rows += [
        (f"softlabels/{key}", *nothing, format_quantity("memory", facts["bytes"]), _minute(facts["created"]))
        for key, facts in summaries(store).items()
    ]
    rows += [
        (f"timings/{one.name}", *nothing, format_quantity("memory", one.bytes), _minute(one.created))
        for one in store.manifests("timing")
    ]
    rows += [(f"sweeps/{name}", *nothing, "-", "-") for name in store.sweeps()]
    if not rows:
        print(f"store {store.uri} is empty")
        return
    print(f"store {store.uri}")
    head = ("artefact", "data", "classes", "parameters", "MACs", "latency", "device", "top-1 %", "size", "made")
    print_columns(head, rows, right=(2, 3, 4, 5, 7, 8))
    if config.check:
        broken = store.broken()
        if broken:
            names = ", ".join(f"{FOLDERS[entry.kind]}/{entry.name}" for entry in broken)
            raise UserError(f"files are missing of {names}: run the commands that made them again")
        print("all files are there", flush=True)


def _line(entry: Entry) -> tuple[str, ...]:
    facts = entry.facts
    found = {name: numbers_of(facts, name) for name in ("params", "macs", "latency", "top1", "knn")}
    top1, knn = found.pop("top1"), found.pop("knn")  # a learngene of features has the latter
    shown = {name: format_quantity(name, each[name]) if each else "-" for name, each in found.items()}
    return (
        f"{FOLDERS[entry.kind]}/{entry.name}",
        one_line(facts.get("data")),
        one_line(facts.get("classes")),
        shown["params"],
        shown["macs"],
        shown["latency"],
        one_line(facts.get("latency_device"), 24),
        f"{top1['top1']:.2f}" if top1 else f"kNN {knn['knn']:.2f}" if knn else "-",
        format_quantity("memory", entry.size),
        _minute(entry.created),
    )


def _minute(created: str) -> str:
    return created[:16].replace("T", " ")


def summaries(store: Store) -> dict[str, dict[str, Any]]:
    """Return every soft-label cache by its key: what it depends on, its size and its cost."""
    grouped: dict[str, list[Manifest]] = defaultdict(list)
    for manifest in store.manifests("softlabels"):
        facts = manifest.metadata
        cost = facts.get("cost")
        whole = isinstance(cost, dict) and numbers_of(cost, "images", "teacher_flops")
        if not whole or not numbers_of(facts, "epoch", "views") or "facts" not in facts:
            log.warning("left out: %s/%s does not say what it holds", FOLDERS["softlabels"], manifest.name)
            continue
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

"""`learngene show`: a page about one artefact, or the leaderboard of a sweep; `--json` prints all that is known."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from ray_learngene.cli.catalog import summaries
from ray_learngene.config import ShowConfig
from ray_learngene.config.image import shape_words
from ray_learngene.errors import UserError
from ray_learngene.models.budgets import format_quantity
from ray_learngene.progress import duration_text
from ray_learngene.store.manifest import FOLDERS, KIND_OF, Manifest, parse_artefact
from ray_learngene.store.rows import mapping, numbers_of
from ray_learngene.store.store import Store
from ray_learngene.store.timings import record_of
from ray_learngene.terminal import one_line

_ROW = {"params": "parameters", "macs": "MACs", "memory": "memory", "latency": "latency"}
_COST = {"images": "{:,.0f} images", "flops": "{:.3g} FLOPs", "teacher_flops": "{:.3g} teacher FLOPs"}


def print_artefact(config: ShowConfig) -> None:
    """Print what is known about one artefact, or a sweep's leaderboard.

    Raises:
        UserError: there is no artefact of that name.
    """
    store = Store.of(config)
    store.check(write=False)
    folder, name = parse_artefact(config.artefact)
    if folder == "sweeps":
        _print_sweep(store, name, as_json=config.as_json)
    elif folder == "softlabels":
        found = summaries(store)
        if name not in found:
            raise UserError(f"no soft labels {name!r} in {store.uri}: see `learngene list`")
        print(json.dumps(found[name], indent=2))
    else:
        manifest = store.manifest(KIND_OF[folder], name)
        if config.as_json:
            print(json.dumps(manifest.model_dump(mode="json"), indent=2))
            return
        for label, value in _page(manifest, store):
            print(f"{label:12}{one_line(value, 400)}")


def _timing(manifest: Manifest) -> Iterator[tuple[str, str]]:
    """Yield what a record of latencies says: its device, its conditions, and every size."""
    record = record_of(manifest)
    device = record.device.model_dump()
    yield (
        "device",
        ", ".join(f"{name} {value}" for name, value in device.items() if name != "name") or record.device.name,
    )
    yield "conditions", f"{record.text}, {record.clock} time{', the machine was busy' if record.busy else ''}"
    for one in record.sizes:
        doubt = "" if one.agreed else ", not repeatable"
        yield "latency", f"{one.name}: {one.latency_ms:.4g} ms, p90 {one.p90_ms:.4g} ms{doubt}"


def _page(manifest: Manifest, store: Store) -> Iterator[tuple[str, str]]:
    """Yield labels and values, the most wanted first. What a user's own script left out of a store is left out."""
    facts = manifest.metadata
    row = mapping(facts.get("row"))
    artefact = f"{FOLDERS[manifest.kind]}/{manifest.name}"
    yield "artefact", f"{artefact} in {store.uri}"
    yield "made", f"{manifest.created[:16].replace('T', ' ')} UTC, {format_quantity('memory', manifest.bytes)}"
    if manifest.kind == "timing":
        yield from _timing(manifest)
    yield from _model(facts, row)
    yield from _scores(facts, row)
    if license := mapping(facts.get("origin")).get("license"):
        yield "license", str(license)
    if row.get("outside"):
        yield "note", str(row["outside"])
    yield from _spent(mapping(facts.get("cost")) or row)
    if row and manifest.kind == "descendant":
        from ray_learngene.store.costs import cost_text, costed_rows

        found = {one["descendant"]: one for one in costed_rows(store, manifest.name.partition("/")[0])}
        if one := found.get(row.get("descendant")):
            yield "whole cost", f"{cost_text(one, 'whole')}; undivided {cost_text(one, 'undivided')}"
    versions = mapping(facts.get("versions"))
    if versions or manifest.kind != "timing":
        yield "made with", ", ".join(f"{name} {value}" for name, value in versions.items()) or "unknown versions"
    yield "get it", f"learngene pull {artefact} --store {store.uri}"
    yield "all of it", f"learngene show {artefact} --store {store.uri} --json"


def _model(facts: Mapping[str, Any], row: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield what the model is and what it was made of."""
    if method := facts.get("method") or row.get("arm"):
        options = mapping(facts.get("options"))
        yield "method", ", ".join([str(method), *(f"{name}={value}" for name, value in options.items())])
    spec = mapping(facts.get("spec")) or row
    if "width" in spec:
        stages = "-".join(map(str, spec["depths"])) if isinstance(spec.get("depths"), list) else spec.get("stages")
        named = {**spec, "depth": stages} if stages else spec
        parts = {name: f"{name} {named[name]}" for name in ("width", "depth", "image", "patch") if name in named}
        if image := shape_words(named.get("image")):
            parts["image"] = image
        yield "size", ", ".join([*([str(named["architecture"])] if named.get("architecture") else []), *parts.values()])
    if isinstance(labels := facts.get("labels"), list):
        shown = f"{', '.join(str(label) for label in labels[:5])}{', ...' if len(labels) > 5 else ''}"
        unnamed = f"{spec['classes']}, without names" if spec.get("classes") else "none: features"
        yield "classes", f"{len(labels)}: {shown}" if labels else unnamed
    if data := mapping(facts.get("config")).get("data"):
        yield "images", str(data)
    for source in ("ancestry", "source", "learngene"):
        if text := facts.get(source) or row.get(source):
            yield source, str(text)


def _scores(facts: Mapping[str, Any], row: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield what the model costs to run, and its accuracy."""
    costs = [(name, numbers_of(row, name)) for name in _ROW]
    if known := [f"{format_quantity(name, each[name])} {_ROW[name]}" for name, each in costs if each]:
        yield "costs", ", ".join(known)
    elif parameters := numbers_of(facts, "parameters"):
        yield "costs", f"{format_quantity('params', parameters['parameters'])} parameters"
    scores = {**mapping(facts.get("metrics")), **{name: row[name] for name in ("top1_untuned", "top1") if name in row}}
    if known := [_score(name, each[name]) for name in scores if (each := numbers_of(scores, name))]:
        yield "measured", ", ".join(known)


def _spent(cost: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield what the training has cost."""
    known = [text.format(each[name]) for name, text in _COST.items() if (each := numbers_of(cost, name)) and each[name]]
    if seconds := numbers_of(cost, "seconds"):
        known.append(duration_text(seconds["seconds"]))
    if (of_device := numbers_of(cost, "device_seconds")) and of_device["device_seconds"]:
        known.append(f"{of_device['device_seconds']:.4g} CPU or GPU seconds")
    if load := numbers_of(cost, "load"):
        known.append(f"load {load['load']:.1f}")
    if known:
        yield "cost", ", ".join(known)


def _score(name: str, value: float) -> str:
    words = {"top1": "top-1", "val_loss": "validation loss", "knn": "kNN", "linear": "linear probe"}
    title = words.get(name, name.replace("top1", "top-1").replace("_", " "))
    return f"{title} {value:.4g}{'' if 'loss' in name else ' %'}"


def _print_sweep(store: Store, name: str, *, as_json: bool) -> None:
    from ray_learngene.cli.leaderboard import print_leaderboard
    from ray_learngene.pages.spending import spending_lines
    from ray_learngene.store.costs import costed_rows
    from ray_learngene.store.sweeps import read_settings

    settings = read_settings(store, name)
    if settings is None:
        raise UserError(f"no sweep {name!r} in {store.uri}: see `learngene list`")
    if as_json:
        print(json.dumps({**settings, "rows": costed_rows(store, name)}, indent=2, default=str))
        return
    print_leaderboard(costed_rows(store, name), settings["budgets"])
    for line in spending_lines(store, name):
        print(line)

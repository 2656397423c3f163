"""From rows of results tables to what the page carries of each model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ray_learngene.config.image import shape_words
from ray_learngene.progress import counted
from ray_learngene.provenance import publishable
from ray_learngene.store.costs import epochs_text
from ray_learngene.store.rows import measured_on, numbers_of
from ray_learngene.store.store import Entry

Record = dict[str, Any]  # what the page shows of one descendant

_DIGITS = 6  # of a number that is no integer
# what a model costs in all while its sweep runs, learngene included; a column that a row does not have costs nothing
_SECONDS = ("seconds", "fit_seconds", "overhead_seconds", "learngene_seconds")
_FLOPS = ("flops", "teacher_flops", "fit_flops", "learngene_flops", "learngene_teacher_flops")
_OWN_SECONDS = ("seconds", "fit_seconds")
_OWN_DEVICE_SECONDS = ("device_seconds", "fit_device_seconds")
# what decides a latency
_TIMED = ("width", "depth", "heads", "image", "patch", "architecture", "stages")
# used for other parts of the page
_NOT_SHOWN = ("timed", "device", "latency", "labels", "images_of_set", "set_name", "own_device_seconds", "load")


def record(row: Mapping[str, Any], folder: str | None = None) -> Record:
    """Return what the page shows of a finished descendant.

    Args:
        folder: The folder of its files in the store, where it is known.
    """
    images = publishable(text_of(row, "data"))  # rows of earlier versions hold a path of their machine
    labels = label_set(row)
    return {
        "sweep": text_of(row, "sweep"),
        "name": text_of(row, "descendant"),
        "arm": text_of(row, "arm"),
        "size": size_of(row),
        "folder": folder,
        "images": images,
        "learngene": text_of(row, "learngene"),
        "version": text_of(row, "learngene_version"),
        "outside": text_of(row, "outside"),
        "top1": number_of(row, "top1"),
        "untuned": number_of(row, "top1_untuned"),
        "epoch1": number_of(row, "top1_epoch1"),
        "seconds": number_of(row, "whole_seconds") or _sum(row, _SECONDS),
        "own": _sum(row, _OWN_SECONDS),
        "own_device_seconds": _sum(row, _OWN_DEVICE_SECONDS) if number_of(row, "device_seconds") is not None else None,
        "load": number_of(row, "load"),
        "flops": number_of(row, "whole_flops") or _sum(row, _FLOPS),
        "undivided_seconds": number_of(row, "undivided_seconds"),
        "undivided_flops": number_of(row, "undivided_flops"),
        "exports": text_of(row, "exports"),
        "trained_for": epochs_text(row).removeprefix(", ") or None,
        **{name: number_of(row, name) for name in ("seed", "lr", "params", "macs", "memory", "latency")},
        "image": shape_words(row.get("image")),
        "device": measured_on(row),
        "timed": tuple((name, row.get(name)) for name in _TIMED),
        "labels": labels,
        "images_of_set": f"{labels} {row.get('validation') or ''}".strip(),  # what makes accuracies comparable
        "set_name": f"{images or 'images'}, {counted(row.get('classes'), 'class')}",
    }


def records_of(rows: Iterable[Mapping[str, Any]], entries: Iterable[Entry]) -> list[Record]:
    """Return what the page shows of finished descendants, from their rows with whole costs and the store's entries."""
    return [record(row, entry.folder) for row, entry in zip(rows, entries, strict=True)]


def size_of(row: Mapping[str, Any]) -> str:
    """Return a size as people write it: 48×6, or with its architecture and the blocks of each stage."""
    name = f"{row['architecture']} " if row.get("architecture") else ""
    return f"{name}{row.get('width')}×{row.get('stages') or row.get('depth')}"


def label_set(facts: Mapping[str, Any]) -> str:
    """Return what tells the classes of a model from others."""
    return str(facts.get("labels") or facts.get("classes"))


def model_columns(records: Sequence[Record]) -> dict[str, Any]:
    """Return the columns of all models, the devices of their latencies, and the image sets of their accuracies."""
    devices = _distinct(one["device"] for one in records if one["latency"] is not None)
    order = numbered_sets(records)
    sets = {one["images_of_set"]: one["set_name"] for one in records}
    names = [sets[each] if [*sets.values()].count(sets[each]) == 1 else f"{sets[each]} ({each})" for each in order]
    shown = [name for name in records[0] if name not in _NOT_SHOWN] if records else []
    columns = {name: [one[name] for one in records] for name in shown}
    columns["set"] = [order[one["images_of_set"]] for one in records]
    for index, device in enumerate(devices):
        columns[f"latency{index}"] = [one["latency"] if one["device"] == device else None for one in records]
    return {
        "models": {"rows": len(records), "columns": {name: _packed(values) for name, values in columns.items()}},
        "devices": devices,
        "sets": names,
    }


def numbered_sets(records: Iterable[Record]) -> dict[str, int]:
    """Return the number of every image set on the page."""
    return {image_set: number for number, image_set in enumerate(_distinct(one["images_of_set"] for one in records))}


def unfinished_models(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return what became of descendants that did not finish."""
    return [
        {
            "arm": text_of(row, "arm"),
            "size": size_of(row),
            "seed": row.get("seed"),
            "lr": number_of(row, "lr") or 0,
            "status": text_of(row, "status"),
            "error": text_of(row, "error"),
        }
        for row in rows
    ]


def _distinct(texts: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(texts))


def text_of(row: Mapping[str, Any], name: str) -> str | None:
    """Return a text of a row; None where there is none."""
    value = row.get(name)
    return value if isinstance(value, str) and value else None


def number_of(row: Mapping[str, Any], name: str) -> float | int | None:
    """Return a number of a row as the page writes it; None where there is none."""
    found = numbers_of(row, name)
    if found is None:
        return None
    value = found[name]
    return int(value) if value.is_integer() else float(f"{value:.{_DIGITS}g}")


def _sum(row: Mapping[str, Any], names: Iterable[str]) -> float | None:
    known = [value for name in names if (value := number_of(row, name)) is not None]
    return float(f"{sum(known):.4g}") if known else None


def _packed(values: Sequence[Any]) -> Any:
    """Return a column as it is, or as numbers of its distinct values where those are few."""
    distinct = list(dict.fromkeys(values))
    if len(values) < 4 or len(distinct) > len(values) / 2:
        return list(values)
    position = {value: index for index, value in enumerate(distinct)}
    return {"distinct": distinct, "index": [position[value] for value in values]}

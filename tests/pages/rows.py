"""Rows of made-up sweeps, and what a page says of them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

from ray_learngene.pages.columns import record
from ray_learngene.pages.page import SweepPage
from ray_learngene.store.store import Store

Row = dict[str, Any]


def row(**changes: Any) -> Row:
    """Return one finished descendant."""
    width, depth = changes.get("width", 32), changes.get("depth", 6)
    params = 12 * width * width * depth + 500
    arm, seed = changes.get("arm", "sws"), changes.get("seed", 0)
    return {
        "descendant": f"{arm}.photos-w{width}-d{depth:02d}-s{seed}-0e29b09f",
        "sweep": "photos",
        "status": "finished",
        "error": None,
        "arm": arm,
        "width": width,
        "depth": depth,
        "heads": width // 16,
        "image": 32,
        "patch": 4,
        "classes": 10,
        "seed": seed,
        "lr": 0.0016,
        "epochs": 5,
        "params": params,
        "macs": 64 * params,
        "memory": 6 * params,
        "latency": params / 50_000,
        "latency_batch": 1,
        "latency_dtype": "float32",
        "latency_threads": 1,
        "latency_device": "cpu x86_64",
        "outside": None,
        "data": "photos",
        "labels": "ab12",
        "validation": "cd34",
        "top1_untuned": 61.5,
        "top1_epoch1": 70.25,
        "top1": 80.0,
        "seconds": 20.0,
        "overhead_seconds": 0.5,
        "flops": 10**12,
        "teacher_flops": 10**11,
        "fit_seconds": 1.5,
        "fit_flops": 10**10,
        "learngene": "photos",
        "learngene_version": "86037868fd91",
        "learngene_seconds": 200.0,
        "learngene_flops": 2 * 10**12,
        "learngene_teacher_flops": 10**12,
    } | changes


def rows(arms: Sequence[str], widths: Sequence[int], depths: Sequence[int], seeds: int, **changes: Any) -> list[Row]:
    """Return a sweep in which wider and deeper models, and later arms, are better; seeds differ by half a point."""
    return [
        row(
            **{"arm": arm, "width": width, "depth": depth, "seed": seed},
            **{"top1": 70 + 4 * rank + width / 16 + depth + 0.5 * seed, "top1_untuned": 60 + 4 * rank + depth},
            **changes,
        )
        for rank, arm in enumerate(arms)
        for width in widths
        for depth in depths
        for seed in range(seeds)
    ]


def page_of(store: Store, found: Iterable[Row], name: str = "photos", **others: Any) -> str:
    return SweepPage(store, name).text([record(one) for one in found], **others)


def data_of(page: str) -> dict[str, Any]:
    """Return what a page carries."""
    found = re.search(r'<script type="application/json" id="data">([^<]*)</script>', page)
    assert found
    data: dict[str, Any] = json.loads(found[1])
    return data


def models_of(page: str) -> list[dict[str, Any]]:
    """Its models, decoded as its script does."""
    table = data_of(page)["models"]
    columns = {
        name: [column["distinct"][index] for index in column["index"]] if isinstance(column, dict) else column
        for name, column in table["columns"].items()
    }
    return [{name: values[number] for name, values in columns.items()} for number in range(table["rows"])]

"""Latencies of devices that were timed on their own stand next to those of the sweep."""

from __future__ import annotations

from typing import Any

import pytest

from ray_learngene.store.store import Store
from ray_learngene.store.timings import Record, publish_record
from tests.pages.rows import data_of, models_of, page_of, row


def record(device: str, depths: dict[int, float], **changes: Any) -> Record:
    sizes = [
        {
            **{"name": f"d{depth}", "latency_ms": latency, "p90_ms": latency},
            "spec": {"width": 32, "depth": depth, "heads": 2, "image": 32, "patch": 4},
        }
        for depth, latency in depths.items()
    ]
    facts = {"format": 1, "device": {"name": device}, "runtime": "onnxruntime 1.32", "precision": "fp32"}
    return Record.model_validate({**facts, "threads": 1, "batch": 1, "clock": "cpu", "sizes": sizes} | changes)


def test_latencies_of_a_device_are_measured_predicted_or_unknown(tmp_path: Any) -> None:
    store = Store(str(tmp_path / "store"))
    publish_record(store, record("pi5", {2: 3.0, 6: 7.0, 12: 13.0}), None, overwrite=False)
    publish_record(store, record("pi5", {6: 2.5}, precision="int8"), None, overwrite=False)
    page = page_of(store, [row(depth=6), row(depth=9), row(depth=6, width=64)])
    devices, models = data_of(page)["devices"], models_of(page)
    assert devices[0].startswith("cpu x86_64") and [text.split(",")[0] for text in devices[1:]] == ["pi5", "pi5"]
    fp32, int8 = (next(i for i, text in enumerate(devices) if word in text) for word in ("fp32", "int8"))
    assert [one[f"latency{int8}"] for one in models] == [2.5, None, None]
    assert models[0][f"latency{fp32}"] == 7.0 and models[0][f"error{fp32}"] is None
    assert models[1][f"latency{fp32}"] == pytest.approx(10.0, rel=1e-3) and models[1][f"error{fp32}"] == 0.001
    assert models[2][f"latency{fp32}"] is None


def test_a_latency_is_that_of_the_models_own_architecture(tmp_path: Any) -> None:
    store = Store(str(tmp_path / "store"))
    publish_record(store, record("pi5", {6: 7.0}), None, overwrite=False)
    spec = {"width": 32, "depth": 6, "heads": 2, "image": 32, "patch": 4, "architecture": "swin", "depths": [2, 4]}
    swin = [{"name": "swin", "latency_ms": 9.0, "p90_ms": 9.0, "spec": spec}]
    publish_record(store, record("swins", {}, sizes=swin), None, overwrite=False)
    page = page_of(store, [row(depth=6), row(depth=6, architecture="swin", stages="2-4")])
    devices, models = data_of(page)["devices"], models_of(page)
    pi5, swins = (next(i for i, text in enumerate(devices) if text.startswith(name)) for name in ("pi5", "swins"))
    assert [(one[f"latency{pi5}"], one[f"latency{swins}"]) for one in models] == [(7.0, None), (None, 9.0)]

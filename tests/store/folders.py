"""Folders and descendants that tests publish and pull."""

import os
from pathlib import Path
from typing import Any

import pytest

from ray_learngene.errors import UserError
from ray_learngene.store.store import Store

WEIGHTS = os.urandom(300_000)


def make_folder(path: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def one_line(error: pytest.ExceptionInfo[UserError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


def row(top1: float, params: int = 1000) -> dict[str, Any]:
    costs = {"params": params, "macs": 10, "memory": 10, "latency": 1.0, "latency_device": "cpu"}
    size = {"width": 48, "depth": 3, "image": 8, "seed": 0, "lr": 1e-3}
    scores = {"top1": top1, "top1_untuned": top1, "top1_epoch1": top1, "seconds": 1.0}
    return {"row": {"descendant": "x", "sweep": "s", "status": "finished", "arm": "sws", **size, **costs, **scores}}


def publish(store: Store, folder: Path, name: str, top1: float = 1.0, **options: Any) -> None:
    store.publish("descendant", name, folder, row(top1), **options)

"""A folder to publish and an empty store, local and on S3."""

from pathlib import Path

import pytest

from ray_learngene.store.store import Store
from tests.store.folders import WEIGHTS, make_folder


@pytest.fixture
def files() -> dict[str, bytes]:
    return {"model.safetensors": WEIGHTS, "config.json": b"{}", "plots/a.svg": b"<svg/>", "empty.txt": b""}


@pytest.fixture
def folder(tmp_path: Path, files: dict[str, bytes]) -> Path:
    return make_folder(tmp_path / "folder", files)


@pytest.fixture
def store(store_uri: str) -> Store:
    return Store(store_uri)

"""What a command checks before it imports torch and Ray, which takes seconds: whether what it names is there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ray_learngene.config import EvaluateConfig, ExportConfig, PlanConfig, PullConfig
from ray_learngene.config.training import StoreConfig
from ray_learngene.errors import UserError

_STORED = "store:ancestries/"


def check_named(config: Any) -> None:
    """Check that a model folder, or learngenes and ancestry models of a local store, are there.

    The command checks all of it again, and more. Of a bucket it alone does, because a request costs.

    Raises:
        UserError: something is not there.
    """
    if isinstance(config, ExportConfig | EvaluateConfig):
        folder = Path(config.model).expanduser()
        if not (folder / "config.json").is_file():
            missing = "it has no config.json" if folder.is_dir() else "there is no such folder"
            raise UserError(f"{folder} is not a timm model folder: {missing}")
    # pull imports neither, and goes on without a trained descendant
    if not isinstance(config, StoreConfig) or isinstance(config, PullConfig) or "://" in config.store:
        return
    planned = isinstance(config, PlanConfig) and config.distill  # its learngene is still to be distilled
    learngenes = [] if planned else _given(config, "learngene", "start")
    ancestries = [one.removeprefix(_STORED) for one in _given(config, "ancestry", "source") if one.startswith(_STORED)]
    if learngenes or ancestries:
        from ray_learngene.store.store import Store

        store = Store.of(config)
        store.check(write=False)
        for name in learngenes:
            store.manifest("learngene", name)
        for name in ancestries:
            store.manifest("ancestry", name)


def _given(config: Any, *fields: str) -> list[str]:
    return [value for name in fields if (value := getattr(config, name, None))]

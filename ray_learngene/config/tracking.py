"""Which trackers follow a training."""

from __future__ import annotations

import os

from pydantic import Field, field_validator

from ray_learngene.config.base import Config
from ray_learngene.config.texts import Texts

KINDS = ("tensorboard", "mlflow", "wandb")
_MLFLOW_SCHEMES = ("sqlite", "postgresql", "mysql", "mssql", "http", "https", "databricks")


class TrackingConfig(Config):
    """Trackers of curves, settings and results."""

    decides = "nothing"

    track: Texts = Field(
        (), description="trackers, several at once: tensorboard:DIR, mlflow:URI, wandb:PROJECT (or ENTITY/PROJECT)"
    )

    @field_validator("track")
    @classmethod
    def _trackers(cls, texts: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(_tracker(text) for text in texts)


def _tracker(text: str) -> str:
    """Return a tracker's text, with a local path made absolute: workers of Ray run in folders of their own."""
    kind, _, target = text.partition(":")
    if kind not in KINDS or not target:
        raise ValueError("write tensorboard:DIR, mlflow:URI or wandb:PROJECT")
    if kind == "tensorboard":
        if "://" in target:
            raise ValueError("tensorboard writes to a local folder: write tensorboard:DIR")
        target = os.path.abspath(os.path.expanduser(target))
    if kind == "mlflow" and target.partition(":")[0].partition("+")[0] not in _MLFLOW_SCHEMES:
        raise ValueError(
            "runs of MLflow are on a server or in a database: write mlflow:http://host:5000 or mlflow:sqlite:///mlflow.db"
        )
    begin = "sqlite:///"
    if kind == "mlflow" and target.startswith(begin):
        target = begin + os.path.abspath(os.path.expanduser(target.removeprefix(begin)))
    return f"{kind}:{target}"

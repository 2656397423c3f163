"""What a tracker does, and how one is named: KIND:TARGET."""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Protocol

from ray_learngene.errors import UserError
from ray_learngene.progress import LOSSES, SCORES

Parameters = Mapping[str, str]
_CURVES = {
    *LOSSES,
    "val_loss",
    *SCORES,
    *(f"ema_{name}" for name in SCORES),
    "epoch",
    "lr",
    "seconds",
    "images_per_second",
}


@dataclass(frozen=True)
class Reference:
    """A published model: where it is, which version, and the SHA-256 of its weights."""

    uri: str
    version: str
    sha256: str


class Tracker(Protocol):
    """Follows runs by their names. A run that is started again under its name goes on. Any method may raise."""

    def start(self, run: str, parameters: Parameters) -> None:
        """Begin a run, or continue it."""

    def log(self, run: str, step: int, numbers: Mapping[str, float]) -> None:
        """Add points to the curves of a run."""

    def finish(self, run: str, row: Mapping[str, Any], model: Reference) -> None:
        """End a run whose model is published, with its results."""

    def fail(self, run: str, error: str) -> None:
        """End a run that failed or was stopped."""

    def close(self) -> None:
        """Write out what is pending; runs that have not ended were interrupted."""


def require(package: str, kind: str) -> ModuleType:
    """Import the package of a tracker.

    Raises:
        UserError: it is not installed.
    """
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        raise UserError(
            f"--track {kind}: needs {error.name}: pip install 'ray_learngene[{kind}]', or leave --track out"
        ) from None


def curve_points(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of a report that make curves."""
    return {
        name: float(value)
        for name, value in metrics.items()
        if name in _CURVES and isinstance(value, int | float) and math.isfinite(value)
    }


def result_numbers(row: Mapping[str, Any]) -> dict[str, float]:
    """Return the finite numbers of a row of results."""
    return {
        name: float(value)
        for name, value in row.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    }

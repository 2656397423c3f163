"""python docs/api_stub.py     write ray_learngene/api.pyi: every keyword of the API with its type and default

Editors and type checkers read it. A test holds it equal to the configurations.
"""

from __future__ import annotations

import typing
from pathlib import Path
from typing import Any

import ray_learngene
from ray_learngene import config
from ray_learngene.config.base import Config

STUB = Path(__file__).parents[1] / "ray_learngene" / "api.pyi"
# function: (configuration, parameters before the keywords, settings that those give, what it returns)
FUNCTIONS: dict[str, tuple[type[Config], str, set[str], str]] = {
    "train_ancestry": (config.AncestryConfig, "", set(), "Artefact"),
    "distill": (config.DistillConfig, "", set(), "Artefact"),
    "extract": (config.ExtractConfig, "", set(), "Artefact"),
    "sweep": (config.SweepConfig, "learngene: Artefact | str, ", {"learngene"}, "pandas.DataFrame"),
    "plan": (config.PlanConfig, "learngene: Artefact | str | None = None, ", {"learngene"}, "Plan"),
    "bench": (config.BenchConfig, "", set(), "pandas.DataFrame"),
    "pull": (
        config.PullConfig,
        "store: Store | str, artefact: str | None = None, ",
        {"store", "artefact"},
        "Model",
    ),
    "expand": (config.ExpandConfig, "learngene: Artefact | str, ", {"learngene"}, "Model"),
    "expand_all": (config.ExpandConfig, "learngene: Artefact | str, ", {"learngene"}, "list[Model]"),
    "page": (config.PageConfig, "store: Store | str, ", {"store"}, "Path"),
    "export": (config.ExportConfig, "model: Model | str | Path, ", {"model"}, "list[Exported]"),
    "measure": (
        config.MeasureConfig,
        "models: Artefact | Model | str | Path | Sequence[Model | str | Path], ",
        {"models", "learngene", "imported", "script"},
        "list[Record]",
    ),
    "evaluate": (config.EvaluateConfig, "model: Model | str | Path, ", {"model"}, "Scores | FeatureScores"),
}
_FROM_LEARNGENE = {"name", "data"}  # of a sweep: an `Artefact` gives them
_CALLBACKS = {"train_ancestry": "UserCallback", "distill": "UserCallback", "sweep": "Callback"}  # Ray's
_TAKEN = {
    "Quantity": "str | float | None",
    "WholeNumbers": "str | int | Sequence[int]",
    "OptionalWholeNumbers": "str | int | Sequence[int] | None",
    "Stages": "int | str | Sequence[int] | None",
    "ImageSize": "int | str | tuple[int, int] | None",
    "Channels": "int | None",
    "OptionalNumbers": "str | float | Sequence[float] | None",
    "Texts": "str | Sequence[str]",
    "License": "str | None",
}
HEAD = '''"""Written by `python docs/api_stub.py`: the keywords of every function, with types and defaults."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pandas
from ray.train import UserCallback
from ray.tune import Callback
from torch import nn

from ray_learngene.config import BenchArm
from ray_learngene.config.data import Interpolation
from ray_learngene.delivery.export import Exported
from ray_learngene.delivery.features import FeatureScores
from ray_learngene.errors import Diverged as Diverged
from ray_learngene.errors import Interrupted as Interrupted
from ray_learngene.errors import UserError as UserError
from ray_learngene.store.manifest import Manifest
from ray_learngene.store.store import Store as Store
from ray_learngene.store.timings import Record
from ray_learngene.sweeps.plan import Plan
from ray_learngene.training.evaluation import Scores

__all__ = NAMES

@dataclass(frozen=True)
class Artefact:
    store: Store
    manifest: Manifest
    images: dict[str, Any] | None = None
    @property
    def name(self) -> str: ...
    @property
    def metrics(self) -> dict[str, float]: ...

@dataclass(frozen=True)
class Model:
    path: Path
    def __fspath__(self) -> str: ...
    def load(self) -> tuple[nn.Module, Callable[..., Any]]: ...

def shown_log() -> AbstractContextManager[None]: ...

'''


def type_of(cls: type[Config], name: str) -> str:
    """The type of a keyword, as a stub writes it."""
    owner = next(base for base in cls.__mro__ if name in vars(base).get("__annotations__", {}))
    declared = str(vars(owner)["__annotations__"][name]).replace("LocalPath", "str")
    if name == "store":
        return "Store | str"
    if declared in _TAKEN:
        return _TAKEN[declared]
    annotation = cls.model_fields[name].annotation
    if typing.get_origin(annotation) is tuple:
        return "Sequence[float]" if "float" in str(annotation) else "Sequence[str]"
    if name == "data" or name in ("data_dir", "out", "deepspeed"):
        return f"Path | {declared}"
    return declared


def default_of(cls: type[Config], name: str, given: bool) -> str:
    """` = DEFAULT`; nothing for a keyword that is required."""
    field = cls.model_fields[name]
    if given:
        return " = ..."
    return "" if field.is_required() else f" = {field.default!r}" if _plain(field.default) else " = ..."


def _plain(value: Any) -> bool:
    return value is None or isinstance(value, bool | int | float | str | tuple)


def stub() -> str:
    """The text of api.pyi."""
    parts = [HEAD.replace("NAMES", str(ray_learngene.__all__))]
    for function, (cls, before, elsewhere, returns) in FUNCTIONS.items():
        follows = _FROM_LEARNGENE if function == "sweep" else set()
        names = [name for name in cls.model_fields if name not in elsewhere | set(getattr(cls, "refused", ()))]
        required = [name for name in names if cls.model_fields[name].is_required() and name not in follows]
        lines = [
            f"    {name}: {type_of(cls, name)}{default_of(cls, name, name in follows)},\n"
            for name in (*required, *(name for name in names if name not in required))
        ]
        first = "".join(f"    {part},\n" for part in before.rstrip(", ").split(", ") if part)
        if function in _CALLBACKS:
            lines.append(f"    callbacks: Sequence[{_CALLBACKS[function]}] = (),\n")
        parts.append(f"def {function}(\n{first}    *,\n{''.join(lines)}) -> {returns}: ...\n")
    return "".join(parts)


if __name__ == "__main__":
    STUB.write_text(stub())

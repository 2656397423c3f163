"""The base of all configurations, and how one is made of a recipe and flags."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from ray_learngene.errors import UserError

ConfigT = TypeVar("ConfigT", bound="Config")

# of a field that decides something else than its class says, as `json_schema_extra`; see decides.py
NOTHING: dict[str, Any] = {"decides": "nothing"}
CHOICE: dict[str, Any] = {"decides": "choice"}
RESULT: dict[str, Any] = {"decides": "result"}
ROUNDING: dict[str, Any] = {"decides": "rounding"}


class Config(BaseModel):
    """Base of all configurations: immutable, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    decides: ClassVar[str] = "result"  # what a class's own fields decide; see decides.py


def load_config(cls: type[ConfigT], flags: dict[str, Any], recipe: str | Path | None = None) -> ConfigT:
    """Build a configuration from a YAML recipe and flags that override it.

    Raises:
        UserError: the recipe cannot be read, or a key or value is wrong; one line that names it.
    """
    values = {**(read_recipe(recipe) if recipe else {}), **flags}
    try:
        return cls(**values)
    except ValidationError as error:
        raise UserError(_explain(error, cls, flags, recipe)) from None


def read_recipe(path: str | Path) -> dict[str, Any]:
    """The keys of a YAML recipe."""
    try:
        values = yaml.safe_load(Path(path).read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"recipe {path}: {getattr(error, 'strerror', None) or 'not a text file'}") from None
    except yaml.YAMLError as error:
        mark, what = getattr(error, "problem_mark", None), getattr(error, "problem", None) or error
        where = f" in line {mark.line + 1}" if mark else ""
        raise UserError(f"recipe {path}: not YAML{where}: {' '.join(str(what).split())}") from None
    if not isinstance(values, dict):
        raise UserError(f"recipe {path}: expected 'key: value' lines")
    return {str(key).replace("-", "_"): value for key, value in values.items()}


def _explain(error: ValidationError, cls: type[Config], flags: dict[str, Any], recipe: str | Path | None) -> str:
    first = error.errors()[0]
    message = first["msg"].removeprefix("Value error, ")
    if not first["loc"]:
        return message
    key, *inside = map(str, first["loc"])
    where = f"--{key.replace('_', '-')}" if key in flags or not recipe else f"recipe {recipe}: {key}"
    if inside:
        what = "no such setting" if first["type"] == "extra_forbidden" else f"{message[0].lower()}{message[1:]}"
        return f"{where}: {'.'.join(inside)}: {what}"
    if first["type"] == "missing":
        return f"--{key.replace('_', '-')} is required: {cls.model_fields[key].description}"
    if first["type"] == "extra_forbidden":
        near = difflib.get_close_matches(key, cls.model_fields, n=1)
        return f"{where}: no such setting" + (f"; did you mean {near[0]}?" if near else "")
    return f"{where}: {message[0].lower()}{message[1:]}, got {first['input']!r}"

"""The base of all configurations, and how recipes and flags become one."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from ray_learngene.config.documents import parse_yaml, read_document
from ray_learngene.errors import UserError, did_you_mean
from ray_learngene.provenance import without_password

ConfigT = TypeVar("ConfigT", bound="Config")

# of a field that decides something else than its class says, as `json_schema_extra`; see decides.py
NOTHING: dict[str, Any] = {"decides": "nothing"}
CHOICE: dict[str, Any] = {"decides": "choice"}
RESULT: dict[str, Any] = {"decides": "result"}
ROUNDING: dict[str, Any] = {"decides": "rounding"}
# of a field that came after the first release of the store: left out of names and fingerprints while it has its default
LATER: dict[str, Any] = {"later": True}


class Config(BaseModel):
    """Base of all configurations: immutable, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, coerce_numbers_to_str=True)
    decides: ClassVar[str] = "result"  # what a class's own fields decide; see decides.py


_SECRET = re.compile(
    r"key|(aws_)?secret(_access_key)?|password|passwd|.*(account|access)_key|.*(token|secret|credential)"
)
_NO_SECRETS = ("anon", "cache", "cloud", "google_default", "browser")  # words that gcsfs takes as a token


class StorageConfig(Config):
    """How stores and image sets at a URI are reached."""

    decides = "nothing"

    storage_options: dict[str, Any] = Field(
        {},
        description="options of s3fs, gcsfs or adlfs by the beginning of a URI: a YAML file, or YAML such as "
        "'{s3://public-images: {anon: true}}'; secrets belong in variables or profiles",
        json_schema_extra=LATER,
    )

    @field_validator("storage_options", mode="before")
    @classmethod
    def _from_file(cls, given: Any) -> Any:
        if isinstance(given, str):
            if not given:
                return {}
            try:
                given = parse_yaml(read_document(given) if not given.lstrip().startswith("{") else given)
            except OSError as error:
                raise ValueError(f"{error.strerror or error}: give a YAML file, or YAML in braces") from None
        for place, options in given.items() if isinstance(given, dict) else ():
            if "://" not in str(place) or not isinstance(options, dict):
                raise ValueError("write the beginning of a URI and its options, such as {s3://bucket: {anon: true}}")
            _refuse_secrets(options, place)
        return given


def _refuse_secrets(options: dict[str, Any], place: str) -> None:
    for name, value in options.items():
        if isinstance(value, dict):
            _refuse_secrets(value, place)
        elif isinstance(value, str) and (
            re.search("://[^/]*@", value)
            or (_SECRET.fullmatch(name) and value not in _NO_SECRETS and not value.endswith(".json"))
            or name == "connection_string"
        ):
            # no ValueError, whose value would be repeated
            raise UserError(
                f"--storage-options: {without_password(str(place))}: {name} is a secret, and options are shown to "
                "others: use variables or a profile"
            )


def load_config(
    cls: type[ConfigT],
    flags: dict[str, Any],
    recipes: str | Path | Sequence[str | Path] | None = None,
    *,
    keywords: bool = False,
) -> ConfigT:
    """Build a configuration from YAML recipes, a later one over an earlier one, and flags over all of them.

    A setting that decides no result, such as `store`, may also come from the environment (LEARNGENE_STORE). It
    overrides recipes, and flags override it. An empty variable counts as not set.

    Args:
        keywords: The flags are keywords of a Python function; errors name them without dashes.

    Raises:
        UserError: a recipe cannot be read, or a key or value is wrong; one line that names it.
    """
    paths = [recipes] if isinstance(recipes, str | Path) else list(recipes or ())
    values: dict[str, Any] = {}
    origin: dict[str, str] = {}
    for path in paths:
        given = read_recipe(path)
        values |= given
        origin |= {key: f"recipe {path}: {key}" for key in given}
    for key in cls.model_fields:
        variable = f"LEARNGENE_{key.upper()}"
        if os.environ.get(variable) and what_decides(cls, key) == "nothing":
            values[key], origin[key] = os.environ[variable], variable
    origin |= {key: key if keywords else f"--{key.replace('_', '-')}" for key in flags}
    try:
        config = cls(**{**values, **flags})
    except ValidationError as error:
        raise UserError(_explain(error, cls, origin, keywords)) from None
    if isinstance(config, StorageConfig) and config.storage_options:
        # where the clients look for them, and those of the processes that this one starts
        os.environ["LEARNGENE_STORAGE_OPTIONS"] = json.dumps(config.storage_options)
    return config


def what_decides(cls: type[Config], field: str) -> str:
    """Return what a field decides in a configuration: one of `decides.Decides`."""
    extra = cls.model_fields[field].json_schema_extra
    if isinstance(extra, dict) and "decides" in extra:
        return str(extra["decides"])
    owner = next(base for base in cls.__mro__ if field in vars(base).get("__annotations__", {}))
    return vars(owner).get("decides", "result")


def read_recipe(path: str | Path) -> dict[str, Any]:
    """Read a YAML recipe."""
    try:
        values = parse_yaml(read_document(path))
    except OSError as error:
        raise UserError(f"recipe {path}: {error.strerror or error}") from None
    except ValueError as error:
        raise UserError(f"recipe {path}: {error}") from None
    if not isinstance(values, dict):
        raise UserError(f"recipe {path}: expected 'key: value' lines")
    return {str(key).replace("-", "_"): value for key, value in values.items()}


def address(text: str) -> str:
    """Return an address as it is.

    Raises:
        ValueError: it is empty, which would be the current folder, or a URI whose slashes were lost, which would be a
            local folder of that name.
    """
    if not text.strip():
        raise ValueError("an empty address: name a folder or a URI")
    if match := re.match(r"(s3a?|gs|gcs|abfss?|azure?|adl|https?|hdfs|hf|file):/?(?!/)", text, re.IGNORECASE):
        scheme = match[1].lower()
        start = f"{scheme}:///" if scheme == "file" else f"{scheme}://"
        raise ValueError(f"write {start}{text[match.end() :]}, or ./{text} for a folder of that name")
    return text


def _explain(error: ValidationError, cls: type[Config], origin: dict[str, str], keywords: bool) -> str:
    first = error.errors()[0]
    message = re.split(", unable to parse|, got a number with", first["msg"].removeprefix("Value error, "))[0]
    for pydantics, ours in _WORDS.items():
        message = message.replace(f"Input should be a valid {pydantics}", f"Expected {ours}")
    if not first["loc"]:
        return message
    key, *inside = map(str, first["loc"])
    name = key if keywords else f"--{key.replace('_', '-')}"
    where = origin.get(key, name)
    if inside:
        what = "no such setting" if first["type"] == "extra_forbidden" else f"{message[0].lower()}{message[1:]}"
        return f"{where}: {'.'.join(inside)}: {what}"
    if first["type"] == "missing":
        return f"{name} is required: {cls.model_fields[key].description}"
    if first["type"] == "extra_forbidden":
        return f"{where}: no such setting{did_you_mean(key, cls.model_fields)}"
    value = first["input"]
    parts = value if isinstance(value, list | tuple) else [value]
    quoted = any(isinstance(part, str) and repr(part) in message for part in parts)
    return f"{where}: {message[0].lower()}{message[1:]}{'' if quoted else f', got {_brief(value)}'}"


_WORDS = {
    "tuple": "a list",
    "list": "a list",
    "string": "a text",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "dictionary": "names with values, {name: value}",
}


def _brief(value: object) -> str:
    text = repr(value) if not isinstance(value, int) or abs(value) < 10**20 else "a number of more than 20 digits"
    return text if len(text) <= 100 else f"{text[:97]}..."

"""Read YAML and JSON that people write; mistakes are one-line errors.

Scalars follow YAML 1.2's core schema. PyYAML follows YAML 1.1, where `1:2` is 62 and `010` is 8.
"""

from __future__ import annotations

import json
import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

_MOST_CHARACTERS = 1_000_000  # PyYAML reads about a million in ten seconds
_MOST_BYTES = 10_000_000
_MOST_NODES = 100_000  # with every alias written out
_SCALARS: dict[str, tuple[str, str]] = {  # tag: pattern, first characters
    "null": (r"~|null|Null|NULL|", "~nN"),
    "bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
    "int": (r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    "float": (
        r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        "-+.0123456789",
    ),
    "merge": (r"<<", "<"),  # of YAML 1.1; recipes with anchors use it
}


def _resolvers() -> dict[str, list[tuple[str, re.Pattern[str]]]]:
    found: dict[str, list[tuple[str, re.Pattern[str]]]] = {"": []}
    for name, (pattern, firsts) in _SCALARS.items():
        for first in [*firsts, *([""] if name == "null" else [])]:
            found.setdefault(first, []).append((f"tag:yaml.org,2002:{name}", re.compile(f"(?:{pattern})$")))
    return found


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers = _resolvers()

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        text = self.construct_scalar(node)
        base = {"0o": 8, "0x": 16}.get(text[:2], 10)
        try:
            return int(text, base)
        except ValueError:
            raise yaml.YAMLError(f"line {node.start_mark.line + 1}: not a number: {text[:20]}") from None

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[tuple[str, str]] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and not key.tag.endswith(":merge"):
                if (key.tag, key.value) in seen:
                    raise yaml.YAMLError(f"line {key.start_mark.line + 1}: {key.value!r} is there twice")
                seen.add((key.tag, key.value))
        return super().construct_mapping(node, deep)


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)


class _Dumper(yaml.SafeDumper):
    yaml_implicit_resolvers = _resolvers()


def read_document(path: str | Path) -> str:
    """Read a document that people write; of a device without end no more than a document can have.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is longer than a document, or no text.
    """
    with Path(path).open("rb") as file:  # a pipe is fine: `--config <(envsubst < recipe.yaml)`
        data = file.read(_MOST_BYTES + 1)
    if len(data) > _MOST_BYTES:
        raise ValueError(f"longer than {_MOST_BYTES:,} bytes")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError("not UTF-8 text") from None


def parse_yaml(text: str) -> Any:
    """Parse a YAML document.

    Raises:
        ValueError: it is no YAML, or too deep or large for a document written by hand; one line.
    """
    if len(text) > _MOST_CHARACTERS:
        raise ValueError(f"longer than {_MOST_CHARACTERS:,} characters")
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            _refuse_expansion(node)
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except yaml.YAMLError as error:
        mark, what = getattr(error, "problem_mark", None), getattr(error, "problem", None) or error
        where = f" in line {mark.line + 1}" if mark else ""
        raise ValueError(f"not YAML{where}: {' '.join(str(what).split())}") from None
    except ValueError as error:  # of a tag such as !!timestamp or !!float that does not fit its scalar
        raise ValueError(f"not YAML: {' '.join(str(error).split())[:200]}") from None


def _refuse_expansion(root: yaml.Node) -> None:
    """Refuse aliases that would expand to more than anyone writes, or that contain themselves."""
    sizes: dict[int, int] = {}

    def size(node: yaml.Node) -> int:
        known = sizes.get(id(node))
        if known is not None:
            if known < 0:
                raise yaml.YAMLError(f"line {node.start_mark.line + 1}: an alias is part of itself")
            return known
        sizes[id(node)] = -1
        inner = [part for pair in node.value for part in pair] if isinstance(node, yaml.MappingNode) else node.value
        total = 1 if isinstance(node, yaml.ScalarNode) else 1 + sum(size(part) for part in inner)
        if total > _MOST_NODES:
            raise yaml.YAMLError(f"its aliases stand for more than {_MOST_NODES:,} values")
        sizes[id(node)] = total
        return total

    size(root)


def write_yaml(value: Any) -> str:
    """Write a YAML document that `parse_yaml` reads as this value."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def parse_json(text: str | bytes) -> Any:
    """Parse a JSON document.

    Raises:
        ValueError: it is none, is nested too deeply or holds a number of thousands of digits; one line.
    """
    try:
        return json.loads(text.decode() if isinstance(text, bytes) else text)
    except UnicodeDecodeError:
        raise ValueError("not UTF-8 text") from None
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error}") from None
    except ValueError:  # Python's limit for texts of digits
        raise ValueError("not JSON: a number of more digits than any has") from None


def parse_object(text: str | bytes) -> dict[str, Any]:
    """Return the value of a JSON document that is an object.

    Raises:
        ValueError: see `parse_json`, or it is another value; one line.
    """
    value = parse_json(text)
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")
    return value


def first_error(error: ValidationError) -> str:
    """Return the first error of a document that does not have the form of its model, in one line."""
    first = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    return " ".join(f"{where}: {first['msg']}".removeprefix(": ").replace("Value error, ", "").split())

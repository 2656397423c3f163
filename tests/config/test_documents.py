"""YAML 1.2's scalars, and documents that are not written by hand."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from ray_learngene.config.base import read_recipe
from ray_learngene.config.documents import parse_json, parse_yaml, read_document, write_yaml
from ray_learngene.errors import UserError

SCALARS = {
    "1:2": "1:2",
    "2:8": "2:8",
    "010": 10,
    "0o17": 15,
    "0x1f": 31,
    "-3": -3,
    "1e-3": 0.001,
    "5.": 5.0,
    "yes": "yes",
    "off": "off",
    "True": True,
    "1_000": "1_000",
    "2024-13-45": "2024-13-45",
    "2024-01-01": "2024-01-01",
    "~": None,
    "": None,
    "'1'": "1",
    "6-15": "6-15",
    "4,6,8": "4,6,8",
}


@pytest.mark.parametrize("text", SCALARS)
def test_scalars_are_those_of_yaml_1_2(text: str) -> None:
    value = parse_yaml(f"x: {text}\n")["x"]
    assert value == SCALARS[text] and type(value) is type(SCALARS[text])


def test_anchors_are_merged() -> None:
    assert parse_yaml("a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\n")["b"] == {"x": 1, "y": 3}


BOMB = "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{name}: &{name} [{','.join(10 * [f'*{before}'])}]\n" for before, name in zip("abcdef", "bcdefg", strict=True)
)
HOSTILE = {
    "an alias bomb": (BOMB, "its aliases stand for more than 100,000 values"),
    "an alias of itself": ("a: &a [*a]\n", "an alias is part of itself"),
    "a number of 5,000 digits": (f"x: {'9' * 5000}\n", "not a number: 99999999999999999999$"),
    "deep nesting": ("[" * 5000 + "]" * 5000, "nested too deeply"),
    "an impossible date": ("x: !!timestamp 2024-13-45\n", "not YAML: .*month must be in"),
    "an object": ("x: !!python/object:os.system {}\n", "not YAML in line 1: could not determine a constructor"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_nobody_writes_by_hand_is_one_line(name: str) -> None:
    text, says = HOSTILE[name]
    with pytest.raises(ValueError, match=says) as error:
        parse_yaml(text)
    assert "\n" not in str(error.value) and len(str(error.value)) < 300


@pytest.mark.parametrize("text", ["[" * 100_000 + "]" * 100_000, "9" * 5000, "{", '{"a": 1'])
def test_odd_json_is_one_line(text: str) -> None:
    with pytest.raises(ValueError) as error:
        parse_json(text)
    assert "\n" not in str(error.value) and len(str(error.value)) < 300


# PyYAML writes line separators of Unicode that it does not read again; names and paths have none.
TEXTS = st.text(st.characters(exclude_categories=("Cc", "Cs", "Zl", "Zp")))
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats(allow_nan=False) | TEXTS,
    lambda inner: st.lists(inner) | st.dictionaries(TEXTS, inner),
    max_leaves=10,
)


@given(VALUES)
def test_what_is_written_is_read_again(value: Any) -> None:
    assert parse_yaml(write_yaml(value)) == value


@given(VALUES)
def test_json_is_yaml(value: Any) -> None:
    assert parse_json(json.dumps(value)) == value


@pytest.mark.parametrize("text", ["1e5", "0o7", "1:2", "on", "2024-01-01", "null", "010", "1_000"])
def test_texts_that_look_like_something_else_stay_texts(text: str) -> None:
    assert parse_yaml(write_yaml({"name": text}))["name"] == text
    assert yaml.safe_load(write_yaml({"name": "x"})) == {"name": "x"}


def test_a_document_may_come_through_a_pipe_but_not_without_end(tmp_path: Path) -> None:
    pipe = tmp_path / "recipe.yaml"
    os.mkfifo(pipe)  # as of `--config <(envsubst < recipe.yaml)`
    writer = threading.Thread(target=pipe.write_text, args=("epochs: 3\n",))
    writer.start()
    assert read_recipe(pipe) == {"epochs": 3}
    writer.join()
    with pytest.raises(ValueError, match="longer than"):
        read_document("/dev/zero")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="recipe .*binary: not UTF-8 text"):
        read_recipe(tmp_path / "binary")

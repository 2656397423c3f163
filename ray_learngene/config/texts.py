"""Settings that are texts on the command line, and may be numbers or lists in YAML and Python."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field


def _text(value: Any) -> Any:
    return f"{value:.17g}" if isinstance(value, int | float) and not isinstance(value, bool) else value


def _numbers(value: Any) -> Any:
    """Return `4`, `[4, 6]` and `range(4, 9)` as the text that the command line takes."""
    return ",".join(str(_text(each)) for each in value) if isinstance(value, list | tuple | range) else _text(value)


def _several(value: Any) -> Any:
    """Return one text or number as a list of one."""
    return (value,) if isinstance(value, str | int | float) and not isinstance(value, bool) else value


def _stages(value: Any) -> Any:
    """Read `12` as a number, `3-3-9-3` as numbers."""
    if value is None:
        return None
    parts = value.split("-") if isinstance(value, str) else value if isinstance(value, list | tuple) else [value]
    numbers = tuple(int(str(part)) for part in parts if str(part).strip().isdecimal())
    if len(numbers) != len(parts) or 0 in (*numbers, len(parts)):
        raise ValueError("give a number of layers, or one for each stage as in 3-3-9-3")
    return numbers[0] if len(numbers) == 1 else numbers


def _license(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9 .+()-]{0,99}", name):
        raise ValueError("write a licence's name, such as apache-2.0 or cc-by-nc-4.0")
    return name


def _local(path: str) -> str:
    """Refuse a URI, which would be a local folder of that name."""
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", path):
        raise ValueError(f"a path on this machine is needed: copy it to a bucket afterwards, or write ./{path}")
    return path


def _folder(model: str) -> str:
    """Take `local-dir:FOLDER`, which other commands need, for the folder; refuse what must be pulled first."""
    scheme, colon, rest = model.partition(":")
    if scheme == "store" and colon:
        raise ValueError(f"a folder on this machine is needed: learngene pull {rest}")
    return rest if scheme == "local-dir" and colon else model


# the depth of a model, or of each of its stages
Stages = Annotated[
    Annotated[int, Field(ge=1)] | tuple[Annotated[int, Field(ge=1)], ...] | None, BeforeValidator(_stages)
]
# a quantity: "3M" or 3000000; whole numbers: "4-12", "4,6", 4 or [4, 6]; one text or several
Quantity = Annotated[str | None, BeforeValidator(_text)]
WholeNumbers = Annotated[str, BeforeValidator(_numbers)]
OptionalWholeNumbers = Annotated[str | None, BeforeValidator(_numbers)]
OptionalNumbers = OptionalWholeNumbers
Texts = Annotated[tuple[str, ...], BeforeValidator(_several)]
License = Annotated[str, AfterValidator(_license)] | None
Rates = Annotated[tuple[Annotated[float, Field(gt=0)], ...], BeforeValidator(_several), Field(min_length=1)]
LocalPath = Annotated[str, AfterValidator(_local)]
ModelFolder = Annotated[str, AfterValidator(_folder)]
ModelFolders = Annotated[tuple[ModelFolder, ...], BeforeValidator(_several)]

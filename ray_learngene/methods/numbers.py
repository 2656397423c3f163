"""Options of a method that are several whole numbers, written with dashes: 3-3-4-3-3."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field


def _parse(value: Any) -> Any:
    if isinstance(value, int):
        return (value,)
    if isinstance(value, str):
        parts = value.split("-")
        if not all(part.strip().isdigit() for part in parts):
            raise ValueError(f"expected numbers such as 3-3-4-3-3, got {value!r}")
        return tuple(int(part) for part in parts)
    return value


Numbers = Annotated[tuple[Annotated[int, Field(ge=1)], ...], BeforeValidator(_parse)]

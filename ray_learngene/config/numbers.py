"""Depths, widths and factors as the command line takes them."""

from __future__ import annotations

import re

from ray_learngene.errors import UserError


def parse_numbers(flag: str, text: str) -> list[int]:
    """Read `6-15` or `4,6,8` or a mix, as sorted distinct numbers.

    Raises:
        UserError: the text is neither.
    """
    numbers: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,6})\s*(?:-\s*(\d{1,6})\s*)?", part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
        if not 1 <= first <= last <= 100_000 or last - first >= 1000:
            raise UserError(
                f"--{flag} {text}: cannot read {part.strip()!r}; write 6-15 or 4,6,8 "
                "(1 to 100,000, and a range of at most 1,000)"
            )
        numbers.update(range(first, last + 1))
    return sorted(numbers)


def parse_depths(text: str, flag: str = "depths") -> list[int | tuple[int, ...]]:
    """Total depths as `parse_numbers` reads them, and depths of three stages or more such as `3-3-9-3`.

    Raises:
        UserError: a part is neither.
    """
    found: list[int | tuple[int, ...]] = []
    for part in text.split(","):
        stages = part.strip().split("-")
        if len(stages) > 2 and all(re.fullmatch(r"\d{1,6}", stage) and int(stage) for stage in stages):
            found.append(tuple(map(int, stages)))
        else:
            found += parse_numbers(flag, part)
    return list(dict.fromkeys(found))


def parse_factors(flag: str, text: str) -> list[float]:
    """Read `0.25,0.5,1` as numbers above 0.

    Raises:
        UserError: a part is none.
    """
    try:
        factors = [float(part) for part in text.split(",")]
    except ValueError:
        factors = [0.0]
    if not all(0 < factor <= 100 for factor in factors):
        raise UserError(f"--{flag} {text}: write factors such as 0.25,0.5,1")
    return factors

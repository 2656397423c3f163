"""What each setting decides: the result, only the augmented views, or only how a run is executed.

A configuration class declares it for its fields by `decides`; a field that differs, by `json_schema_extra`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Literal

from ray_learngene.config.base import Config, what_decides
from ray_learngene.errors import UserError

Decides = Literal[
    "result",
    "rounding",  # the result, by rounding alone
    "teaching",  # the result, where an ancestry model teaches
    "views",  # which pixels are seen in training, and so the result
    "images",  # which image set; its fingerprint is part of the result's name
    "choice",  # which models are made, not what each becomes
    "nothing",
]

# of a run that is continued under its name; of a benchmark, to which models may be added; of one descendant
RUN: frozenset[Decides] = frozenset({"result", "rounding", "teaching", "views", "images", "choice"})
BENCHMARK = RUN - {"choice"}
DESCENDANT: frozenset[Decides] = frozenset({"result", "views"})
TAUGHT_DESCENDANT: frozenset[Decides] = frozenset({"result", "views", "teaching"})


def decisive(config: Config, what: Collection[Decides]) -> dict[str, Any]:
    """Return the settings that decide one of these, as JSON values.

    A field that came later (`json_schema_extra={"later": True}`) is left out while it has its default. So older
    artefacts keep their names and fingerprints.
    """
    values = config.model_dump(mode="json")
    for name, field in type(config).model_fields.items():
        extra = field.json_schema_extra
        later = isinstance(extra, dict) and extra.get("later") and getattr(config, name) == field.default
        if later or what_decides(type(config), name) not in what:
            del values[name]
    return values


def require_same(before: Mapping[str, Any], now: Mapping[str, Any], begun: str, instead: str) -> None:
    """Refuse to continue with other settings than at the start.

    Args:
        begun: What was begun, such as "the sweep 'x' in ./store".
        instead: What the user can do instead.

    Raises:
        UserError: one line that names the first setting that differs.
    """
    changed = [key for key in sorted({*before, *now}) if before.get(key) != now.get(key)]
    if changed:
        key = changed[0]
        more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
        raise UserError(
            f"{begun} was made with {key} {before.get(key)!r}, not {now.get(key)!r}{more}: "
            f"choose another --name{instead}"
        )

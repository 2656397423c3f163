"""The methods by name, and the text form of a method with options."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from ray_learngene.errors import UserError
from ray_learngene.methods.any_size import AnySize
from ray_learngene.methods.base import Method
from ray_learngene.methods.kept_blocks import AutoLG, HeurLG
from ray_learngene.methods.ligo import LiGO
from ray_learngene.methods.mimetic import Mimetic
from ray_learngene.methods.pretrained import Pretrained
from ray_learngene.methods.scratch import Scratch
from ray_learngene.methods.share_init import ShareInit
from ray_learngene.methods.supernet import Supernet
from ray_learngene.methods.sws import SWS
from ray_learngene.methods.tleg import TLEG
from ray_learngene.methods.wave import Wave
from ray_learngene.methods.weight_selection import WeightSelection

_CLASSES: tuple[type[Method], ...] = (
    AnySize,
    SWS,
    Wave,
    TLEG,
    ShareInit,
    HeurLG,
    AutoLG,
    Pretrained,
    WeightSelection,
    LiGO,
    Supernet,
    Mimetic,
    Scratch,
)
METHODS: dict[str, type[Method]] = {method.name: method for method in _CLASSES}


def create_method(text: str, **options: Any) -> Method:
    """Create the method written as `NAME[:option=value]...`, for example `sws:stages=3-3-4-3-3:expansion=random`.

    Args:
        options: Further options; options in the text take precedence.

    Raises:
        UserError: unknown method, unknown option or bad value.
    """
    name, *pairs = text.strip().split(":")
    if name not in METHODS:
        raise UserError(f"unknown method {name!r}: choose one of {', '.join(METHODS)}")
    method = METHODS[name]
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or key not in method.model_fields:
            known = ", ".join(method.model_fields) or "none"
            raise UserError(f"method {text!r}: {pair!r} is not an option of {name!r}; its options: {known}")
        options[key] = value
    try:
        return method(**options)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or name
        raise UserError(f"method {text!r}: {where}: {first['msg'].removeprefix('Value error, ')}") from None

"""The methods by name, those of other packages too, and the text form of a method with options.

Another package offers a method by an entry point of the group `ray_learngene.methods`; examples/method is one.
"""

from __future__ import annotations

from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from pydantic import ValidationError

from ray_learngene.config.methods import check_method, written_options
from ray_learngene.errors import UserError
from ray_learngene.methods.any_size import AnySize
from ray_learngene.methods.base import Method
from ray_learngene.methods.early_exit import EarlyExit
from ray_learngene.methods.kept_blocks import AutoLG, HeurLG
from ray_learngene.methods.layer_drop import LayerDrop
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
from ray_learngene.provenance import METHODS_GROUP

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
    EarlyExit,
    LayerDrop,
    Mimetic,
    Scratch,
)
METHODS: dict[str, type[Method]] = {method.name: method for method in _CLASSES}  # of this package


@cache
def method_class(name: str) -> type[Method]:
    """Return the method of a name, from this package or another one.

    Raises:
        UserError: there is none, or what another package offers cannot be imported or is no method.
    """
    if name in METHODS:
        return METHODS[name]
    check_method(name)
    return _load({point.name: point for point in entry_points(group=METHODS_GROUP)}[name])


def _load(point: EntryPoint) -> type[Method]:
    package = point.dist.name if point.dist else point.module
    try:
        method = point.load()
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise UserError(f"method {point.name!r} of the package {package} cannot be imported: {reason}") from error
    if not (isinstance(method, type) and issubclass(method, Method)) or getattr(method, "name", None) != point.name:
        raise UserError(f"{point.value} of the package {package} is no method with the name {point.name!r}")
    return method


def create_method(text: str, **options: Any) -> Method:
    """Create the method written as `NAME[:option=value]...`, for example `sws:stages=3-3-4-3-3:expansion=random`.

    Args:
        options: Further options; options in the text take precedence.

    Raises:
        UserError: unknown method, unknown option or bad value.
    """
    text = text.strip()
    name = text.partition(":")[0]
    method = method_class(name)
    options |= written_options(text, method.model_fields)
    try:
        return method(**options)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or name
        raise UserError(f"method {text!r}: {where}: {first['msg'].removeprefix('Value error, ')}") from None

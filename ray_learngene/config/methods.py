"""The names of the methods, known without torch; `methods/registry.py` has their classes."""

from __future__ import annotations

from importlib.metadata import entry_points

from ray_learngene.errors import UserError
from ray_learngene.provenance import METHODS_GROUP

METHOD_NAMES = (
    *("any-size", "sws", "wave", "tleg", "share-init", "heur-lg", "auto-lg", "pretrained", "weight-selection", "ligo"),
    *("supernet", "layerdrop", "mimetic", "scratch"),
)


def check_method(text: str) -> None:
    """Check the name in `NAME[:option=value]...[@LEARNGENE]`.

    Raises:
        UserError: no method of this package or another one has it.
    """
    name = text.partition("@")[0].strip().partition(":")[0]
    known = [*METHOD_NAMES, *(point.name for point in entry_points(group=METHODS_GROUP))]
    if name not in known:
        raise UserError(f"unknown method {name!r}: choose one of {', '.join(known)}")

"""The methods and their options by name, known without torch; `methods/registry.py` has the classes."""

from __future__ import annotations

from collections.abc import Collection
from importlib.metadata import entry_points

from ray_learngene.errors import UserError
from ray_learngene.provenance import METHODS_GROUP

METHOD_OPTIONS: dict[str, tuple[str, ...]] = {
    "any-size": ("stages", "parts", "shallowest", "growth", "step", "widths", "corrections", "untied"),
    "sws": ("stages", "expansion", "layout"),
    "wave": ("counts", "template", "vectors", "embeddings", "scalers", "head", "fit", "fit_lr"),
    "tleg": (),
    "share-init": (),
    "heur-lg": ("keep",),
    "auto-lg": ("keep",),
    "pretrained": ("truncate",),
    "weight-selection": ("heads", "qkv"),
    "ligo": ("fit", "fit_lr", "layers", "expanders", "noise"),
    "supernet": ("shallowest", "widths", "random", "layers", "growth"),
    "early-exit": ("shallowest", "exits", "own", "growth", "until"),
    "layerdrop": ("rate", "layers"),
    "mimetic": ("alpha1", "beta1", "alpha2", "beta2"),
    "scratch": (),
}


def check_method(text: str) -> None:
    """Check the names in `NAME[:option=value]...[@LEARNGENE]`; of a method of another package, only its own.

    Raises:
        UserError: no method of this package or another one has the name, or it has no such option.
    """
    method = text.partition("@")[0].strip()
    name = method.partition(":")[0]
    known = [*METHOD_OPTIONS, *(point.name for point in entry_points(group=METHODS_GROUP))]
    if name not in known:
        raise UserError(
            f"unknown method {name!r}: choose one of {', '.join(known)}, or install the package that offers it"
        )
    if name in METHOD_OPTIONS:
        written_options(method, METHOD_OPTIONS[name])


def written_options(method: str, known: Collection[str]) -> dict[str, str]:
    """Return the options in `NAME[:option=value]...`.

    Raises:
        UserError: one is not known.
    """
    name, *pairs = method.split(":")
    options = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or key not in known:
            raise UserError(
                f"method {method!r}: {pair!r} is not an option of {name!r}; its options: {', '.join(known) or 'none'}"
            )
        options[key] = value
    return options

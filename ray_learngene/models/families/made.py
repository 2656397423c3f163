"""Models of timm's entry points on the meta device, with the arguments that their constructors got."""

from __future__ import annotations

import inspect
import json
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, is_dataclass
from functools import lru_cache
from typing import Any

import timm
from timm.models import build_model_with_cfg
from torch import nn

from ray_learngene.errors import TooLarge, UserError, reason_of
from ray_learngene.models.architectures import no_architecture
from ray_learngene.models.meta import on_meta

Arguments = dict[str, Any]

# keywords of timm's classes that set the depth; the first that a class has counts
DEPTHS = ("depth", "depths", "layers", "stages", "num_blocks", "serial_depths")
MOST_BLOCKS = 10_000  # a model of more takes minutes to build, even without memory


@dataclass(frozen=True)
class Made:
    """A timm model that was built on the meta device, and the arguments that its constructor got."""

    model: nn.Module
    arguments: Arguments


def made(architecture: str, arguments: Mapping[str, Any]) -> Made:
    """Build a model on the meta device and read its constructor's arguments, defaults included; cached.

    Raises:
        UserError: timm has no such entry point, or refuses the arguments.
    """
    if not timm.is_model(architecture):
        raise no_architecture(architecture)
    refuse_depth(architecture, arguments)
    try:
        return _made(architecture, json.dumps(arguments, sort_keys=True))
    except Exception as error:  # timm's classes raise what their arithmetic happens to raise, StopIteration too
        given = ", ".join(f"{name}={value}" for name, value in arguments.items())
        own = _own(architecture, arguments)
        raise UserError(f"{architecture} ({given}): timm refuses this size: {reason_of(error, 200)}{own}") from None


def refuse_depth(name: str, arguments: Mapping[str, Any]) -> None:
    """Refuse a depth among keywords that would take minutes to build.

    Raises:
        TooLarge: there are more blocks than `MOST_BLOCKS`.
    """
    for keyword in DEPTHS:
        value = arguments.get(keyword)
        blocks = sum(n for n in (value if isinstance(value, list | tuple) else [value]) if isinstance(n, int))
        if blocks > MOST_BLOCKS:
            raise TooLarge(f"{name}: {keyword} {blocks:,}: a model has {MOST_BLOCKS:,} blocks at most")


def _own(architecture: str, arguments: Mapping[str, Any]) -> str:
    """Say what an entry point has by itself for the keywords of a size that timm refuses."""
    try:
        own = _made(architecture, "{}").arguments
    except Exception:  # timm cannot build it at all
        return ""
    known = [f"{name}={own[name]}" for name in arguments if own.get(name) is not None and name != "num_classes"]
    return f"; its own is {', '.join(known)}" if known else ""


@lru_cache(maxsize=512)
def _made(architecture: str, text: str) -> Made:
    with _recorded() as calls, on_meta():
        model = timm.create_model(architecture, **json.loads(text))
    given: Arguments = next((given for built, given in calls if built is model), {})
    found = {**_defaults(type(model)), **given}
    settings = found.get("cfg")
    if is_dataclass(settings):  # some classes take their size as one object, and its fields as keywords
        found = {**vars(settings), **found}
    return Made(model, found)


_lock = threading.Lock()  # `_recorded` changes timm's modules for a moment


@contextmanager
def _recorded() -> Iterator[list[tuple[nn.Module, Arguments]]]:
    """Record the models that timm's builder makes, each with the arguments of its constructor."""
    calls: list[tuple[nn.Module, Arguments]] = []

    def build(model_cls: Callable[..., nn.Module], *args: Any, **kwargs: Any) -> nn.Module:
        def construct(**given: Any) -> nn.Module:
            model = model_cls(**given)
            calls.append((model, given))
            return model

        made: nn.Module = build_model_with_cfg(construct, *args, **kwargs)
        return made

    with _lock:
        users = [module for name, module in sys.modules.items() if name.startswith("timm.models.")]
        users = [module for module in users if vars(module).get("build_model_with_cfg") is build_model_with_cfg]
        for module in users:
            module.build_model_with_cfg = build  # type: ignore[attr-defined]
        try:
            yield calls
        finally:
            for module in users:
                module.build_model_with_cfg = build_model_with_cfg  # type: ignore[attr-defined]


def _defaults(cls: type[nn.Module]) -> Arguments:
    """Return the defaults of a constructor's arguments, with those of its base classes."""
    found: Arguments = {}
    for base in cls.__mro__:
        init: Any = base.__dict__.get("__init__")
        if init is not None and issubclass(base, nn.Module) and base is not nn.Module:
            for parameter in inspect.signature(init).parameters.values():
                if parameter.default is not inspect.Parameter.empty:
                    found.setdefault(parameter.name, parameter.default)
    return found

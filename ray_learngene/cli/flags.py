"""The flags of a command, made from the fields of its configuration."""

from __future__ import annotations

import argparse
import types
import typing
from typing import Any, NoReturn

from ray_learngene.errors import UserError

# fields that are given without a flag
_POSITIONAL = {
    "pull": "artefact",
    "show": "artefact",
    "evaluate": "model",
    "expand": "learngene",
    "export": "model",
    "measure": "models",
}
# what users of timm and Ray type for the same field
_ALIASES = {
    "accumulation": ("--grad-accum-steps",),
    "auto_augment": ("--aa",),
    "batch_size": ("-b",),
    "ema": ("--model-ema-decay",),
    "follow": ("--wait",),
    "imported": ("--import",),
    "image_size": ("--img-size",),
    "interpolation": ("--train-interpolation",),
    "loader_workers": ("--num-workers",),
    "lr": ("--learning-rate",),
    "precision": ("--amp-dtype",),
    "repeats": ("--aug-repeats",),
}
# fields whose words may also be joined by commas
COMMA_SEPARATED = {"arms"}
# fields whose flag has another name; the field's own name works too
NAMES = {"as_json": "json"}  # pydantic has a `json` of its own


class _InputSize(argparse.Action):
    """Read timm's `--input-size`: channels, height and width."""

    def __call__(self, parser: Any, namespace: argparse.Namespace, values: Any, option: str | None = None) -> None:
        namespace.in_chans, namespace.image_size = values[0], "x".join(values[1:])


_INPUT_SIZE: dict[str, Any] = {
    "action": _InputSize,
    "dest": "image_size",
    "nargs": 3,
    "metavar": ("CHANNELS", "HEIGHT", "WIDTH"),
    "help": "timm's way to give image_size and in_chans: 3 256 128",
}


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see `{self.prog} --help`")


def parser_of(command: str, cls: Any) -> argparse.ArgumentParser:
    summary = (cls.__doc__ or "").split(": ", 1)[-1]
    positional = _POSITIONAL.get(command)
    word = positional.upper() if positional else ""
    if positional and not cls.model_fields[positional].is_required():
        word = f"[{word}]"
    usage = " ".join(filter(None, ("learngene", command, word, "[flags]")))
    parser = Parser(
        prog=f"learngene {command}",
        usage=usage,
        description=f"{summary[0].upper()}{summary[1:]}",
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    if command != "submit":  # the recipe is the submitted command's
        parser.add_argument(
            "--config",
            metavar="YAML",
            action="append",
            help="recipe: a YAML file with any of these settings; of several, a later one overrides an earlier one",
        )
        parser.add_argument("--print-config", action="store_true", help="print the settings that would run, as YAML")
    shown: set[str] = set()
    for owner in cls.__mro__:  # the command's own settings first, then those it has in common with others
        declared = vars(owner).get("__annotations__", {}).keys() & cls.model_fields.keys()
        names = [name for name in cls.model_fields if name in declared - shown]
        if not names:
            continue
        shown.update(names)
        title = owner.__doc__.splitlines()[0].rstrip(".")
        if title.startswith("`learngene "):  # a command's; of another's, where its settings are this one's too
            title = title.split("`")[1].removeprefix("learngene ")
        group = parser.add_argument_group(title)
        for name in names:
            hidden = name in getattr(cls, "refused", ())
            _add_argument(group, name, cls.model_fields[name], positional=name == positional, hidden=hidden)
        if "in_chans" in names:
            group.add_argument("--input-size", **_INPUT_SIZE)
    return parser


def _add_argument(group: argparse._ArgumentGroup, name: str, field: Any, *, positional: bool, hidden: bool) -> None:
    required = " (required)" if field.is_required() else ""
    value = field.get_default(call_default_factory=True)
    nothing = field.is_required() or value in (None, (), {}, "")
    default = "" if nothing else f" (default: {_show(value)})"
    help_text = f"{field.description}{required}{default}".replace("%", "%%")
    if positional:
        many = typing.get_origin(field.annotation) is tuple
        group.add_argument(name, nargs="*" if many else "?", help=f"{help_text}; also as --{name}")
    if positional or hidden:
        help_text = argparse.SUPPRESS
    if name in NAMES:
        group.add_argument(f"--{NAMES[name]}", dest=name, help=field.description, action="store_true")
        help_text = argparse.SUPPRESS
    group.add_argument(*_flags(name), dest=name, help=help_text, **_argument(name, field.annotation))


def _flags(name: str) -> list[str]:
    return [f"--{name.replace('_', '-')}", *_ALIASES.get(name, ())]


def flags_of(name: str) -> list[str]:
    """Return the flags of a field that a user may have meant."""
    return [f"--{NAMES[name]}"] if name in NAMES else _flags(name)


def _show(default: Any) -> str:
    if isinstance(default, tuple):
        return " ".join(_show(value) for value in default)
    return f"{default:.4g}" if isinstance(default, float) else str(default)


def _argument(name: str, annotation: Any) -> dict[str, Any]:
    """Return argparse's options of a field; the configuration converts and validates."""
    while typing.get_origin(annotation) is typing.Annotated:
        annotation = typing.get_args(annotation)[0]
    members = typing.get_args(annotation) if typing.get_origin(annotation) in (typing.Union, types.UnionType) else ()
    kinds = [kind for kind in members if kind is not type(None)] or [annotation]
    kinds = [typing.get_args(kind)[0] if typing.get_origin(kind) is typing.Annotated else kind for kind in kinds]
    kind = kinds[0]
    if kind is bool:
        return {"action": argparse.BooleanOptionalAction}
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Literal:
        return {"metavar": "{" + ",".join(map(str, inner)) + "}", "type": type(inner[0])}
    if origin is tuple:
        return {"nargs": "+", "metavar": name.rstrip("s").upper()} if inner[-1] is Ellipsis else {"nargs": len(inner)}
    if origin is dict:
        return {"type": _yaml, "metavar": "YAML"}
    return {"metavar": "|".join(_shown(kind) for kind in kinds)}


def _shown(kind: Any) -> str:
    """Return what a help text calls a value of this kind: its type, its values, or 3-3-9-3 for several numbers."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin is tuple:
        return "N-N-..." if inner[-1] is Ellipsis else "HxW"
    return "|".join(map(str, inner)) if inner else str(getattr(kind, "__name__", "value")).upper()


def _yaml(text: str) -> Any:
    from ray_learngene.config.documents import parse_yaml

    try:
        return parse_yaml(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{error}: {text[:100]!r}") from None

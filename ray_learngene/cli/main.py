"""The `learngene` command. Heavy imports happen inside the commands, so that `learngene --help` answers at once."""

from __future__ import annotations

import argparse
import difflib
import importlib
import os
import sys
import types
import typing
from collections.abc import Sequence
from typing import Any, NoReturn

from ray_learngene import __version__, sigterm
from ray_learngene.errors import Interrupted, UserError

# command -> (configuration class, module:function that takes it, one line of help)
COMMANDS: dict[str, tuple[str, str, str]] = {
    "ancestry": (
        "AncestryConfig",
        "ray_learngene.distillation.train_ancestry:train_ancestry",
        "train an ancestry model, if you have none",
    ),
    "distill": (
        "DistillConfig",
        "ray_learngene.distillation.distill:distill",
        "distil an ancestry model into a learngene",
    ),
    "softlabels": (
        "SoftLabelsConfig",
        "ray_learngene.distillation.soft_labels:fill",
        "cache the ancestry model's logits, for many distillations",
    ),
    "extract": (
        "ExtractConfig",
        "ray_learngene.distillation.extract:extract",
        "take a learngene from a trained model, without distillation",
    ),
    "plan": (
        "PlanConfig",
        "ray_learngene.cli.plan:print_plan",
        "which sizes meet which budget, and what a sweep will cost",
    ),
    "sweep": (
        "SweepConfig",
        "ray_learngene.cli.sweep:print_sweep",
        "train descendants of many sizes from one learngene",
    ),
    "bench": (
        "BenchConfig",
        "ray_learngene.compare.compare:bench",
        "compare methods under one recipe, and what each costs",
    ),
    "pull": ("PullConfig", "ray_learngene.cli.pull:pull", "download the best model within a budget, verified"),
    "expand": (
        "ExpandConfig",
        "ray_learngene.cli.expand:print_expansions",
        "make a model of any size from a learngene, without training",
    ),
    "export": (
        "ExportConfig",
        "ray_learngene.cli.export:print_exports",
        "write ONNX, int8 or torch.export files of a model, compared with it",
    ),
    "measure": (
        "MeasureConfig",
        "ray_learngene.cli.measure:measure",
        "time models on the device that will run them, and predict all other sizes",
    ),
    "submit": (
        "SubmitConfig",
        "ray_learngene.cli.submit:print_job",
        "run a command as a job on a cluster, and follow it",
    ),
    "evaluate": (
        "EvaluateConfig",
        "ray_learngene.cli.evaluate:print_evaluation",
        "measure a pulled model with plain timm",
    ),
    "list": ("ListConfig", "ray_learngene.cli.catalog:print_list", "what a store holds"),
    "show": ("ShowConfig", "ray_learngene.cli.show:print_artefact", "one artefact, or the leaderboard of a sweep"),
    "page": (
        "PageConfig",
        "ray_learngene.cli.page:print_page",
        "a page to choose a model by, of the sweeps of a store",
    ),
    "gc": ("GcConfig", "ray_learngene.cli.gc:print_garbage", "the leftovers of a store, and their removal"),
    "data check": ("CheckConfig", "ray_learngene.cli.data:print_check", "name what is wrong with an image set"),
    "data convert": (
        "ConvertConfig",
        "ray_learngene.cli.data:print_convert",
        "any image set to resized Parquet shards",
    ),
}
# commands that `learngene submit` takes
JOBS = ("ancestry", "distill", "softlabels", "extract", "sweep", "bench", "pull")
# packages of the extra [train]; the thin client, without them, lists, shows, pulls and makes pages
_TRAINING_PACKAGES = {
    *("deepspeed", "jinja2", "matplotlib", "optuna", "pandas", "PIL", "ray", "safetensors", "sklearn", "timm", "torch"),
    "torchvision",
}
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
    "ema": ("--model-ema-decay",),
    "follow": ("--wait",),
    "imported": ("--import",),
    "image_size": ("--img-size",),
    "interpolation": ("--train-interpolation",),
    "precision": ("--amp-dtype",),
    "repeats": ("--aug-repeats",),
}
# fields whose words may also be joined by commas
_COMMA_SEPARATED = {"arms"}
# fields whose flag has another name; the field's own name works too
_NAMES = {"as_json": "json"}  # pydantic has a `json` of its own


class _Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see `{self.prog} --help`")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        The exit status: 2 for a mistake, 130 for Ctrl-C, 143 for SIGTERM, else a submitted job's own.
    """
    try:
        parsed = _parse(list(sys.argv[1:] if arguments is None else arguments))
        if parsed is not None:
            target, *configured = parsed
            from ray_learngene.cli.output import shown_log

            module, function = target.split(":")
            with shown_log():
                getattr(importlib.import_module(module), function)(*configured)
        sys.stdout.flush()
        return 0
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in _TRAINING_PACKAGES:
            raise
        print(
            f"learngene: error: this command needs {error.name}: pip install 'ray_learngene[train]' "
            "(list, show, page and pull need no more than is installed)",
            file=sys.stderr,
        )
        return UserError.status
    except UserError as error:
        from ray_learngene.terminal import printable

        print(f"learngene: error: {printable(str(error))}", file=sys.stderr)
        return error.status
    except Interrupted as interrupted:
        how = "interrupted" if sigterm.by_ctrl_c() else "stopped by SIGTERM"
        begun = "what was begun is in a checkpoint, " if interrupted.has_checkpoint else ""
        print(
            f"learngene: {how} after {interrupted.done} of {interrupted.total} {interrupted.of}; {begun}run the same "
            "command again to continue",
            file=sys.stderr,
        )
        return sigterm.CTRL_C_STATUS if sigterm.by_ctrl_c() else sigterm.STATUS
    except SystemExit as end:
        if end.code != sigterm.STATUS:
            raise
        print("learngene: stopped by SIGTERM; run the same command again to continue", file=sys.stderr)
        return sigterm.STATUS
    except KeyboardInterrupt as interruption:
        what = str(interruption) or "run the same command again to continue"
        print(f"learngene: interrupted; {what}", file=sys.stderr)
        return sigterm.CTRL_C_STATUS
    except BrokenPipeError:  # the reader of our output went away, as in `learngene list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _parse(arguments: list[str]) -> tuple[Any, ...] | None:
    """Return the command's "module:function" and its arguments; None if only help was asked for."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_overview())
        return None
    if arguments[0] == "--version":
        print(f"learngene {__version__}")
        return None
    if arguments[0] == "data" and {"-h", "--help"} & set(arguments[1:2] or ["--help"]):
        print(_overview("data "))
        return None
    words = 2 if arguments[0] == "data" else 1
    command = " ".join(arguments[:words])
    if command not in COMMANDS:
        near = difflib.get_close_matches(command, COMMANDS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"commands: {', '.join(COMMANDS)}"
        raise UserError(f"unknown command {command!r}; {hint}")
    from ray_learngene import config as configs
    from ray_learngene.config.presets import preset_table

    if command == "submit":
        return _parse_submit(arguments[1:])
    class_name, target, _ = COMMANDS[command]
    cls = getattr(configs, class_name)
    parser = _parser(command, cls)
    if "-h" in arguments or "--help" in arguments:
        print(parser.format_help(), end="")
        if "preset" in cls.model_fields:
            print("\n".join(["", *preset_table()]))
        return None
    known, unknown = parser.parse_known_args(arguments[words:])
    if unknown:
        flag = unknown[0].split("=")[0]
        near = difflib.get_close_matches(flag, [f"--{name.replace('_', '-')}" for name in cls.model_fields], n=1)
        raise UserError(
            f"learngene {command}: unknown argument {flag!r}" + (f"; did you mean {near[0]}?" if near else "")
        )
    flags = vars(known)
    recipes, print_config = flags.pop("config", None), flags.pop("print_config", False)
    for name in _COMMA_SEPARATED & {name for name, value in flags.items() if isinstance(value, list)}:
        flags[name] = [part.strip() for word in flags[name] for part in word.split(",") if part.strip()]
    config = configs.load_config(cls, flags, recipes)
    if print_config:
        import yaml

        print(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True), end="")
        return None
    return target, config


def _parse_submit(arguments: list[str]) -> tuple[Any, ...] | None:
    """Parse `submit`: its own flags may stand anywhere; the rest is a command, which is validated here."""
    from ray_learngene.config import SubmitConfig, load_config

    parser = _parser("submit", SubmitConfig)
    parser.usage = "learngene submit COMMAND [flags of the command] [flags]"
    parser.description = f"{parser.description} COMMAND is one of {', '.join(JOBS)}."
    if {"-h", "--help"} & set(arguments):
        if arguments[0] in COMMANDS:
            return _parse([arguments[0], "--help"])
        print(parser.format_help(), end="")
        return None
    flags, rest = parser.parse_known_args(arguments)
    if not rest:
        raise UserError("learngene submit: which command? e.g. `learngene submit distill --config recipe.yaml`")
    settings = load_config(SubmitConfig, vars(flags))
    if rest[0] not in JOBS:
        raise UserError(f"learngene submit: {rest[0]!r} is not run as a job; those are {', '.join(JOBS)}")
    parsed = _parse(rest)
    return parsed and (COMMANDS["submit"][1], rest[0], parsed[1], settings)


def _overview(first: str = "") -> str:
    """Return the list of commands, or of those with this first word."""
    shown = {name.removeprefix(first): text for name, (_, _, text) in COMMANDS.items() if name.startswith(first)}
    width, command = max(map(len, shown)), f"learngene {first}COMMAND"
    lines = [f"  {name:{width}}  {text}" for name, text in shown.items()]
    return "\n".join(
        [
            f"usage: {command} [flags]",
            "",
            "Train one learngene, spawn a vision model for every budget.",
            "",
            *lines,
            "",
            f"Every flag can stand in a YAML file: {command} --config recipe.yaml [flags that override].",
            f"{command} --help explains a command; learngene --version prints the version.",
        ]
    )


def _parser(command: str, cls: Any) -> argparse.ArgumentParser:
    summary = (cls.__doc__ or "").split(": ", 1)[-1]
    positional = _POSITIONAL.get(command)
    word = positional.upper() if positional else ""
    if positional and not cls.model_fields[positional].is_required():
        word = f"[{word}]"
    usage = " ".join(filter(None, ("learngene", command, word, "[flags]")))
    parser = _Parser(
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
    return parser


def _add_argument(group: argparse._ArgumentGroup, name: str, field: Any, *, positional: bool, hidden: bool) -> None:
    required = " (required)" if field.is_required() else ""
    nothing = field.is_required() or field.default in (None, (), {}, "")
    default = "" if nothing else f" (default: {_show(field.default)})"
    help_text = f"{field.description}{required}{default}".replace("%", "%%")
    if positional:
        many = typing.get_origin(field.annotation) is tuple
        group.add_argument(name, nargs="*" if many else "?", help=f"{help_text}; also as --{name}")
    if positional or hidden:
        help_text = argparse.SUPPRESS
    flags = [f"--{name.replace('_', '-')}", *_ALIASES.get(name, ())]
    if name in _NAMES:
        group.add_argument(f"--{_NAMES[name]}", dest=name, help=field.description, action="store_true")
        help_text = argparse.SUPPRESS
    group.add_argument(*flags, dest=name, help=help_text, **_argument(name, field.annotation))


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
    """What a help text calls a value of this kind: its type, its values, or 3-3-9-3 for several numbers."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin is tuple:
        return "N-N-..."
    return "|".join(map(str, inner)) if inner else str(getattr(kind, "__name__", "value")).upper()


def _yaml(text: str) -> Any:
    from ray_learngene.config.documents import parse_yaml

    try:
        return parse_yaml(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{error}: {text[:100]!r}") from None

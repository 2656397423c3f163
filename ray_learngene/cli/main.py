"""The `learngene` command. Heavy imports happen inside the commands, so that `learngene --help` answers at once."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any

from ray_learngene import __version__, sigterm
from ray_learngene.cli.commands import COMMANDS, JOBS, overview
from ray_learngene.cli.flags import COMMA_SEPARATED, flags_of, parser_of
from ray_learngene.errors import Interrupted, UserError, did_you_mean
from ray_learngene.progress import counted

# packages of the extra [train]; the thin client, without them, lists, shows, pulls and makes pages
_TRAINING_PACKAGES = {
    *("deepspeed", "jinja2", "matplotlib", "optuna", "pandas", "PIL", "ray", "safetensors", "sklearn", "timm", "torch"),
    "torchvision",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        The exit status: 2 for a mistake, 130 for Ctrl-C, 143 for SIGTERM, else a submitted job's own.
    """
    try:
        parsed = _parse(list(sys.argv[1:] if arguments is None else arguments))
        if parsed is not None:
            target, *configured = parsed
            from ray_learngene.cli.early import check_named
            from ray_learngene.cli.output import shown_log

            check_named(configured[0])
            module, function = target.split(":")
            with shown_log():
                getattr(importlib.import_module(f"ray_learngene.{module}"), function)(*configured)
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
            f"learngene: {how} after {interrupted.done} of {counted(interrupted.total, interrupted.of)}; {begun}"
            "run the same command again to continue",
            file=sys.stderr,
        )
        return sigterm.CTRL_C_STATUS if sigterm.by_ctrl_c() else sigterm.STATUS
    except SystemExit as end:
        if end.code != sigterm.STATUS:
            raise
        print("learngene: stopped by SIGTERM; run the same command again", file=sys.stderr)
        return sigterm.STATUS
    except KeyboardInterrupt as interruption:
        what = str(interruption) or "run the same command again"
        print(f"learngene: interrupted; {what}", file=sys.stderr)
        return sigterm.CTRL_C_STATUS
    except BrokenPipeError:  # the reader of our output went away, as in `learngene list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _parse(arguments: list[str]) -> tuple[Any, ...] | None:
    """Return the command's "module:function" and its arguments; None if only help was asked for."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(overview())
        return None
    if arguments[0] == "--version":
        print(f"learngene {__version__}")
        return None
    if arguments[0] == "data" and {"-h", "--help"} & set(arguments[1:2] or ["--help"]):
        print(overview("data "))
        return None
    words = 2 if arguments[0] == "data" else 1
    command = " ".join(arguments[:words])
    if command not in COMMANDS:
        hint = did_you_mean(command, COMMANDS) or f"; commands: {', '.join(COMMANDS)}"
        raise UserError(f"unknown command {command!r}{hint}")
    from ray_learngene import config as configs
    from ray_learngene.config.presets import preset_table

    if command == "submit":
        return _parse_submit(arguments[1:])
    class_name, target, _ = COMMANDS[command]
    cls = getattr(configs, class_name)
    parser = parser_of(command, cls)
    if "-h" in arguments or "--help" in arguments:
        print(parser.format_help(), end="")
        if "preset" in cls.model_fields:
            print("\n".join(["", *preset_table()]))
        return None
    known, unknown = parser.parse_known_args(arguments[words:])
    if unknown:
        flag = unknown[0].split("=")[0]
        known_flags = {name.lstrip("-"): name for field in cls.model_fields for name in flags_of(field)}
        near = did_you_mean(flag.lstrip("-"), known_flags).replace("mean ", "mean --")
        near = near or f"; see `learngene {command} --help`"
        raise UserError(f"{command}: unknown argument {flag!r}{near}")
    flags = vars(known)
    recipes, print_config = flags.pop("config", None), flags.pop("print_config", False)
    for name in COMMA_SEPARATED & {name for name, value in flags.items() if isinstance(value, list)}:
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

    parser = parser_of("submit", SubmitConfig)
    parser.usage = "learngene submit COMMAND [flags of the command] [flags]"
    parser.description = f"{parser.description} COMMAND is one of {', '.join(JOBS)}."
    if {"-h", "--help"} & set(arguments):
        if arguments[0] in COMMANDS:
            return _parse([arguments[0], "--help"])
        print(parser.format_help(), end="")
        return None
    flags, rest = parser.parse_known_args(arguments)
    if not rest:
        raise UserError("submit: which command? e.g. `learngene submit distill --config recipe.yaml`")
    settings = load_config(SubmitConfig, vars(flags))
    if rest[0] not in JOBS:
        raise UserError(f"submit: {rest[0]!r} is not run as a job; those are {', '.join(JOBS)}")
    parsed = _parse(rest)
    return parsed and (COMMANDS["submit"][1], rest[0], parsed[1], settings)

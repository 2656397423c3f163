"""Folders on this machine that appear whole or not at all. What a killed process left goes with the next one."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ray_learngene import sigterm
from ray_learngene.errors import UserError
from ray_learngene.io.errors import clear_errors
from ray_learngene.io.local import writable_path
from ray_learngene.io.scratch import hidden_path

MODEL_MARK, EXPORT_MARK = "config.json", "export.json"  # what every folder of a model, of an export has


def check_free(out: Path, overwrite: bool, mark: str) -> None:
    """Refuse a target that is there, unless it may be replaced and holds the file `mark` of an earlier call.

    Raises:
        UserError: it is there and stays, or nothing can be written there.
    """
    writable_path(out)
    if not os.path.lexists(out):
        return
    if not overwrite:
        raise UserError(f"{out} exists: choose another folder, or --overwrite")
    if out.is_symlink() or not (out / mark).is_file():
        raise UserError(f"{out} has no {mark}, so it is not replaced: choose another folder")


@contextmanager
def new_folder(out: Path, overwrite: bool, mark: str) -> Iterator[Path]:
    """A folder to fill, which has the name `out` at the end and is removed if an error, Ctrl-C or SIGTERM ends it.

    Args:
        mark: A file that every such folder has; a folder without it is never replaced.

    Raises:
        UserError: `out` is there and stays, or the disk refuses.
    """
    check_free(out, overwrite, mark)
    with clear_errors(str(out)):
        out.parent.mkdir(parents=True, exist_ok=True)
        made = hidden_path(out.parent)
        made.mkdir()
    replaced = out.with_name(f".{out.name}.replaced")  # stays if the process is killed before `out` is there again
    try:
        with sigterm.quiet_exit(), clear_errors(str(out)):
            yield made
        with clear_errors(str(out)):
            check_free(out, overwrite, mark)  # again: it may have come into being meanwhile
            if out.exists():
                shutil.rmtree(replaced, ignore_errors=True)
                os.rename(out, replaced)
            os.rename(made, out)
            shutil.rmtree(replaced, ignore_errors=True)
    finally:
        shutil.rmtree(made, ignore_errors=True)

"""The `learngene` command, run in the process of a test."""

from __future__ import annotations

import shlex
import sys
from unittest.mock import patch

from ray_learngene.__main__ import run


def learngene(command: str, *more: object) -> int:
    """Run a command line as `python -m ray_learngene` would; returns its exit status."""
    with patch.object(sys, "argv", ["learngene", *shlex.split(command), *map(str, more)]):
        try:
            run()
        except SystemExit as end:
            return int(end.code or 0)
    return 0

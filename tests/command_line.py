"""The `learngene` command, run in the process of a test or in one of its own."""

from __future__ import annotations

import os
import shlex
import subprocess
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


def process(*arguments: str, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command line in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "ray_learngene", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, **(environment or {})},
        timeout=900,
    )

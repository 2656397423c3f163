"""What a terminal shows of the package's log: messages on standard output, warnings and errors on standard error.

The package logs under the name `ray_learngene`. The command line shows its messages; a caller from Python decides.
"""

from __future__ import annotations

import logging
import sys


class TerminalHandler(logging.Handler):
    """Prints each message as it is."""

    def emit(self, record: logging.LogRecord) -> None:
        # no try: a closed pipe ends the command, as it does where the command prints itself
        print(self.format(record), file=sys.stderr if record.levelno >= logging.WARNING else sys.stdout, flush=True)


def show_log() -> None:
    """Show the package's messages on the terminal from now on."""
    log = logging.getLogger("ray_learngene")
    if not any(isinstance(handler, TerminalHandler) for handler in log.handlers):
        log.addHandler(TerminalHandler())
    log.setLevel(logging.INFO)

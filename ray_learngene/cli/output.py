"""What a terminal shows of the package's log: messages on standard output, warnings and errors on standard error.

The package logs under the name `ray_learngene`. The command line shows its messages; a caller from Python decides.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ray_learngene.progress import Bar

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

_MOST_BARS = 8


class TerminalHandler(logging.Handler):
    """Prints each message, but for what a terminal takes for a command.

    If standard output is a terminal, the bars of work that goes on are drawn.
    """

    def __init__(self) -> None:
        super().__init__()
        self._live: Progress | None = None
        self._bars: dict[str, TaskID] = {}

    def emit(self, record: logging.LogRecord) -> None:
        # no try: a closed pipe ends the command, as it does where the command prints itself
        bar = getattr(record, "bar", None)
        if isinstance(bar, Bar) and sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb":
            self._draw(bar)
        elif record.levelno >= logging.INFO:
            from ray_learngene.terminal import printable  # rich is slow to import, and --help needs none

            stream = sys.stderr if record.levelno >= logging.WARNING else sys.stdout
            print(printable(self.format(record)), file=stream, flush=True)

    def _draw(self, bar: Bar) -> None:
        if bar.done >= 1:
            task = self._bars.pop(bar.what, None)
            if self._live is not None and task is not None:
                self._live.remove_task(task)
            if not self._bars:
                self.end_bars()
        elif bar.what in self._bars or len(self._bars) < _MOST_BARS:
            if self._live is None:
                self._live = _live()
            if bar.what not in self._bars:
                self._bars[bar.what] = self._live.add_task(bar.what, total=1, text="")
            self._live.update(self._bars[bar.what], completed=bar.done, text=bar.text, refresh=True)

    def end_bars(self) -> None:
        """Give the terminal back as it was."""
        if self._live is not None:
            self._live.stop()
        self._live = None
        self._bars.clear()


def _live() -> Progress:
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

    # While it is drawn, rich prints whatever is written above it. Without a thread of its own: workers are forked.
    columns = TextColumn("{task.description}", markup=False), BarColumn(20), TaskProgressColumn()
    live = Progress(*columns, TextColumn("{task.fields[text]}", markup=False), transient=True, auto_refresh=False)
    live.start()
    return live


@contextmanager
def shown_log() -> Iterator[None]:
    """Show the package's messages on the terminal."""
    log, handler = logging.getLogger("ray_learngene"), TerminalHandler()
    shown, before = any(isinstance(each, TerminalHandler) for each in log.handlers), log.level
    if not shown:
        log.addHandler(handler)
    # bars are more frequent than lines, at a lower level
    log.setLevel(logging.DEBUG if sys.stdout.isatty() else logging.INFO)
    try:
        yield
    finally:
        handler.end_bars()
        if not shown:
            log.removeHandler(handler)
            log.setLevel(before)

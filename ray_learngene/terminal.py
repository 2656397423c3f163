"""What goes to the terminal: progress lines and tables."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

log = logging.getLogger(__name__)

_SECONDS = 5.0  # between lines of a training run
_WIDTH = 160  # of a table that goes to a file or another program


class ProgressPrinter:
    """Logs what a training run reports: the first and the last epoch, and between them a line every few seconds."""

    def __init__(self, seconds: float = _SECONDS) -> None:
        self.seconds = seconds
        self._printed = float("-inf")

    def __call__(self, metrics: Mapping[str, Any]) -> None:
        now = time.monotonic()
        if now - self._printed >= self.seconds or metrics["step"] == metrics["total_steps"]:
            log.info(progress_line(metrics))
            self._printed = now


def progress_line(metrics: Mapping[str, Any]) -> str:
    """One line for the end of an epoch, or a step on the way there."""
    parts = [f"epoch {metrics['epoch']:6.2f} / {metrics['epochs']}"]
    for name in ("loss", "distill_loss", "label_loss"):
        if name in metrics:
            parts.append(f"{name.replace('_', ' ')} {metrics[name]:.4f}")
    if metrics["step"]:
        parts.append(f"lr {metrics['lr']:.2e}")
    if "top1" in metrics:
        parts.append(f"top-1 {metrics['top1']:6.2f} %")
    if "ema_top1" in metrics:
        parts.append(f"average's top-1 {metrics['ema_top1']:6.2f} %")
    if metrics["step"]:
        parts.append(f"{metrics['images_per_second']:,.0f} images/s")
    return "   ".join(parts)


def unreadable_text(names: Sequence[str]) -> str:
    """One line about the images that could not be read and were skipped."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"skipped {len(names)} unreadable images: {', '.join(names[:3])}{more}"


def print_table(table: Table) -> None:
    """Print a table, whole also where the output is no terminal."""
    console = Console(highlight=False)
    (console if console.is_terminal else Console(highlight=False, width=_WIDTH)).print(table)


def print_columns(head: Sequence[str], rows: Sequence[Sequence[str]], right: Collection[int] = ()) -> None:
    """Print aligned columns without a frame, those numbered `right` to the right: ten thousand rows in no time."""
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    for row in (head, *rows):
        cells = [
            text.rjust(width) if column in right else text.ljust(width)
            for column, (text, width) in enumerate(zip(row, widths, strict=True))
        ]
        print("  ".join(cells).rstrip())
    sys.stdout.flush()


def one_line(text: object, longest: int = 200) -> str:
    """Text from outside, such as a name in a store, safe to print: no control characters, one line, not too long."""
    shown = "" if text is None else str(text)
    shown = "".join(each if each.isprintable() else "�" for each in shown) or "-"
    return shown if len(shown) <= longest else f"{shown[: longest - 1]}…"

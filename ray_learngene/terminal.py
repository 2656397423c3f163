"""What goes to the terminal: tables, and texts from outside."""

from __future__ import annotations

import sys
from collections.abc import Collection, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table as RichTable

_WIDEST = 1000  # of a table that goes to a file or another program


class Table(RichTable):
    """rich's, whose rows may have text from outside."""

    def add_row(self, *cells: Any, **options: Any) -> None:
        super().add_row(*(printable(cell) if isinstance(cell, str) else cell for cell in cells), **options)


def print_table(table: Table) -> None:
    """Print a table, whole also where the output is no terminal; brackets in it are text, not markup."""
    console = Console(highlight=False, markup=False, emoji=False)
    wide = Console(highlight=False, markup=False, emoji=False, width=_WIDEST)
    (console if console.is_terminal else wide).print(table)


def print_columns(head: Sequence[str], rows: Sequence[Sequence[str]], right: Collection[int] = ()) -> None:
    """Print aligned columns without a frame, those numbered `right` to the right: ten thousand rows in no time."""
    rows = [tuple(map(printable, row)) for row in rows]
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    for row in (head, *rows):
        cells = [
            text.rjust(width) if column in right else text.ljust(width)
            for column, (text, width) in enumerate(zip(row, widths, strict=True))
        ]
        print("  ".join(cells).rstrip())
    sys.stdout.flush()


def printable(text: str) -> str:
    """Text from outside without what a terminal takes for a command."""
    return "".join(each if each.isprintable() or each in "\n\t" else "�" for each in text)


def one_line(text: object, longest: int = 200) -> str:
    """Text from outside, such as a name in a store, safe to print: no control characters, one line, not too long."""
    shown = "" if text is None else str(text)
    shown = "".join(each if each.isprintable() else "�" for each in shown) or "-"
    return shown if len(shown) <= longest else f"{shown[: longest - 1]}…"


def plot_label(text: object) -> str:
    """Text from outside, safe as a label of a plot: matplotlib takes what stands between dollars for a formula."""
    return one_line(text).replace("$", r"\$")

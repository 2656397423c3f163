"""Text from outside, on a terminal and in a plot, is text: no command, no markup, no formula."""

from __future__ import annotations

import io
import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure

from ray_learngene.cli.output import TerminalHandler
from ray_learngene.terminal import Table, one_line, plot_label, print_columns, print_table, printable

HOSTILE = "\x1b]0;title\x07\x1b[31m[bold]red[/bold] :smile: $\\frac{x$ \u202e\x9b1m"


def test_tables_columns_and_messages_print_text(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table("what")
    table.add_row(HOSTILE)
    print_table(table)
    print_columns(("what",), [(HOSTILE,)])
    TerminalHandler().emit(logging.LogRecord("x", logging.ERROR, "", 0, "%s", (HOSTILE,), None))
    printed = capsys.readouterr()
    for text in (printed.out, printed.err):
        assert "[bold]red[/bold] :smile:" in text
        assert not {"\x1b", "\x07", "\x9b", "\u202e"} & set(text)


def test_a_table_that_goes_to_a_file_wraps_no_cell(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table(*(f"column {number}" for number in range(12)))
    table.add_row(*(f"a cell of many words {number}" for number in range(12)))
    print_table(table)
    assert len(capsys.readouterr().out.splitlines()) == 5


@given(st.text())
def test_no_text_reaches_the_terminal_as_a_command(text: str) -> None:
    assert all(each.isprintable() or each in "\n\t" for each in printable(text))
    assert one_line(text).isprintable()


@pytest.mark.parametrize("text", [HOSTILE, "$\\frac{x$", "$$", "a$b$c", "\\$x"])
def test_a_plot_draws_any_label(text: str) -> None:
    figure = Figure()
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], label=plot_label(text))
    axes.legend()
    figure.savefig(io.StringIO(), format="svg")

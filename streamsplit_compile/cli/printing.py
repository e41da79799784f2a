"""Prints the output of commands: JSON, tables, progress, sizes."""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Sequence
from typing import IO, Any

import click
from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from runtime_edge.base.text import printable

console = Console()
_COLUMNS = 80
"""Width of a table that is not printed on a terminal."""


def print_json(value: Any) -> None:
    """Print one JSON document."""
    click.echo(json.dumps(value, indent=2))


def print_warning(line: str) -> None:
    """Print a warning on stderr: something the user should know that does not end the command."""
    click.echo(f"warning: {line}", err=True)


def print_table(title: str, columns: list[str], rows: list[list[str]]) -> None:
    """Print a table for people, with numbers right-aligned. Cells are plain text: markup and control characters in
    them have no effect.

    It fits the terminal, or 80 columns elsewhere; a table too wide for that is written as a list of its rows. Without
    rows only the title is printed.
    """
    click.echo(title)  # the table itself would wrap its title at its own width
    if not rows:
        return
    output = console if _is_terminal(sys.stdout) else Console(width=_COLUMNS)
    shown = [[" ".join(printable(cell).split()) for cell in row] for row in rows]
    numeric = [
        all(row[place][:1].isdigit() or row[place][:1] in "+-." for row in rows) for place in range(len(columns))
    ]
    widths = _widths([columns, *shown], numeric, output.width)
    if widths is None:
        for first, *others in shown:
            told = "; ".join(f"{name} {cell}" for name, cell in zip(columns[1:], others, strict=True) if cell)
            lines = textwrap.wrap(told, output.width - 2)
            click.echo("\n".join([*textwrap.wrap(first, output.width), *(f"  {line}" for line in lines)]))
        return
    table = Table(header_style="bold", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    for name, width, right in zip(columns, widths, numeric, strict=True):
        table.add_column(name, justify="right" if right else "left", width=width)
    for row in shown:
        table.add_row(*map(Text, row))
    output.print(table)


def _widths(rows: Sequence[Sequence[str]], numeric: Sequence[bool], available: int) -> list[int] | None:
    """Widths of a table's columns, whose names are among the rows; None if a word or a number would have to be cut."""
    available -= 2 * (len(numeric) - 1)
    columns = list(zip(*rows, strict=True))
    widths = [max(1, *map(cell_len, column)) for column in columns]
    least = []
    for (name, *cells), right in zip(columns, numeric, strict=True):
        words = cells if right else [word for cell in cells for word in cell.split()]
        least.append(max(1, *map(cell_len, [*name.split(), *words])))
    if sum(least) > available:
        return None
    while sum(widths) > available:
        place = max(range(len(widths)), key=lambda at: (widths[at] > least[at], widths[at]))
        widths[place] -= 1
    return widths


def _is_terminal(stream: IO[str] | None) -> bool:
    """Whether a stream is a terminal; None stands for a closed stream."""
    return stream is not None and stream.isatty()


class Steps:
    """Progress of long work: a bar on a terminal, plain lines elsewhere. Call it with (what, done, total)."""

    def __init__(self, quiet: bool = False) -> None:
        self._quiet = quiet
        self._bar = None
        if _is_terminal(sys.stderr) and not quiet:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TimeElapsedColumn(),
                console=Console(stderr=True),
            )
            self._task = self._bar.add_task("starting", total=1)
        self._last = ""

    def __enter__(self) -> Steps:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.update(self._task, description="done", completed=1, total=1)
            self._bar.stop()

    def __call__(self, what: str, done: int, total: int) -> None:
        if self._quiet:
            return
        if self._bar is not None:
            self._bar.update(self._task, description=what, completed=done, total=total)
        elif what != self._last:
            click.echo(f"{what} ...")  # on stdout: stderr is for the one line that says what went wrong
        self._last = what

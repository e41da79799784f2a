"""What commands print: JSON, tables, progress, sizes."""

from __future__ import annotations

import json
import sys
from typing import IO, Any

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from runtime_edge.base.text import printable

console = Console()


def print_json(value: Any) -> None:
    """One JSON document."""
    click.echo(json.dumps(value, indent=2))


def print_warning(line: str) -> None:
    """What the user should know and what ends nothing, on stderr."""
    click.echo(f"warning: {line}", err=True)


def print_table(title: str, columns: list[str], rows: list[list[str]]) -> None:
    """A table a person can read; numbers to the right. No cell is markup, nor is a terminal told anything by one.

    Without rows there is the title alone.
    """
    click.echo(title)  # a table's own title is broken at the table's width
    if not rows:
        return
    table = Table(header_style="bold")
    for index, column in enumerate(columns):
        numeric = all(row[index][:1].isdigit() or row[index][:1] in "+-." for row in rows)
        table.add_column(column, justify="right" if numeric else "left")
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    (console if _is_terminal(sys.stdout) else Console(width=160)).print(table)


def _is_terminal(stream: IO[str] | None) -> bool:
    """None is a stream that is closed."""
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
            click.echo(f"{what} ...")  # stderr is for the one line that says what went wrong
        self._last = what

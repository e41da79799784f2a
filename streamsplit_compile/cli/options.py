"""Options that several commands share, each one decorator, and how results are printed."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from runtime_edge.formats import minisign
from runtime_edge.formats.credentials import Address, Credentials
from streamsplit_compile.cost.targets import Target, load_target

_Command = TypeVar("_Command", bound=Callable[..., Any])

console = Console()


class PathParam(click.Path):
    """A path, as pathlib knows it."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)


def bundle_argument(command: _Command) -> _Command:
    """A bundle directory."""
    return click.argument("bundle", type=PathParam())(command)


def json_option(command: _Command) -> _Command:
    """`--json`: for programs."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")(command)


def key_option(command: _Command) -> _Command:
    """`--key`: sign with it."""
    return click.option("--key", type=PathParam(), help="Secret key to sign with (`ssc key new`).")(command)


def pub_option(command: _Command) -> _Command:
    """`--pub`: require its signature."""
    return click.option("--pub", type=PathParam(), help="Public key that must have signed it.")(command)


def encoder_options(command: _Command) -> _Command:
    """How to read an encoder's file that does not say it all itself."""
    for option in (
        click.option(
            "--factory",
            help="package.module:callable that builds the module for a plain state_dict; looked for in the working "
            "directory, then on PYTHONPATH.",
        ),
        click.option("--sample-rate", type=click.IntRange(1000, 384000), help="Hz, where the encoder does not say."),
        click.option("--unsafe-load", is_flag=True, help="Unpickle a module, running its code. For your own files."),
    )[::-1]:
        command = option(command)
    return command


def broker_option(command: _Command) -> _Command:
    """`--broker`, and how to be let in there: together one Address, given as `broker`."""

    @click.option("--broker", default="nats://127.0.0.1:4222", show_default=True, help="Broker address.")
    @click.option(
        "--credentials",
        type=PathParam(),
        envvar="SSC_CREDENTIALS",
        help="Key for it: server.nkey of the server's state.",
    )
    @click.option(
        "--tls-ca", type=PathParam(), envvar="SSC_TLS_CA", help="Authorities to check a tls:// broker against."
    )
    @functools.wraps(command)
    def with_address(broker: str, credentials: Path | None, tls_ca: Path | None, **settings: Any) -> Any:
        return command(broker=Address(broker, Credentials(nkey=credentials, tls_ca=tls_ca)), **settings)

    return cast(_Command, with_address)


def parse_targets(text: str) -> list[Target]:
    """Targets from `rpi4,m2` or paths of TOML files. Raises UsageError."""
    return [load_target(name.strip()) for name in text.split(",") if name.strip()]


def read_key(path: Path | None) -> minisign.SecretKey | None:
    """The secret key, when one is given. Raises SignatureError."""
    return None if path is None else minisign.read_secret_key(path)


def read_pub(path: Path | None) -> minisign.PublicKey | None:
    """The public key, when one is given. Raises SignatureError."""
    return None if path is None else minisign.read_public_key(path)


def print_json(value: Any) -> None:
    """One JSON document."""
    click.echo(json.dumps(value, indent=2))


def print_table(title: str, columns: list[str], rows: list[list[str]]) -> None:
    """A table a person can read; numbers to the right."""
    click.echo(title)  # a table's own title is broken at the table's width
    table = Table(header_style="bold")
    for index, column in enumerate(columns):
        numeric = all(row[index][:1].isdigit() or row[index][:1] in "+-." for row in rows)
        table.add_column(column, justify="right" if numeric and rows else "left")
    for row in rows:
        table.add_row(*row)
    (console if sys.stdout.isatty() else Console(width=160)).print(table)


class Steps:
    """Progress of long work: a bar on a terminal, plain lines elsewhere. Call it with (what, done, total)."""

    def __init__(self, quiet: bool = False) -> None:
        self._quiet = quiet
        self._bar = None
        if sys.stderr.isatty() and not quiet:
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


def size(count: float) -> str:
    """Bytes for people."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError

"""The `ssc` command. Each command is imported when it is used, so that `ssc edge` never loads torch.

This package names its own commands and the device's. Packages above it register the name of a table like `COMMANDS`
under the entry-point group `streamsplit.commands`.
"""

from __future__ import annotations

import errno
import functools
import importlib
import importlib.metadata
import sys
from importlib.util import find_spec
from typing import Any

import click

from runtime_edge.base.text import printable
from runtime_edge.errors import DISTRIBUTION, MissingExtra, SscError

GROUP = "streamsplit.commands"
_MAX_ERROR = 4000
_REFUSED_WRITES = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF, errno.EPIPE)

_WITHOUT_TORCH = ("runtime_edge.", "streamsplit_compile.cli.doctor_command")
"""Prefixes of the modules whose commands a device can run."""

Commands = dict[str, tuple[str, str]]
"""Commands by the words that call them: module:attribute, and one sentence on what the command does."""

COMMANDS: Commands = {
    "encoder": ("streamsplit_compile.cli.compile_commands:encoder", "Make or list encoders."),
    "modules": (
        "streamsplit_compile.cli.submodel_commands:modules",
        "Show the groups of channels in an encoder, and how important they are.",
    ),
    "derive": ("streamsplit_compile.cli.submodel_commands:derive_", "Write a sub-model that fits a budget."),
    "compile": ("streamsplit_compile.cli.compile_commands:compile_", "Compile an encoder into a bundle."),
    "inspect": ("streamsplit_compile.cli.bundle_commands:inspect", "Show a bundle's cuts, sizes and predicted costs."),
    "verify": (
        "streamsplit_compile.cli.bundle_commands:verify",
        "Check a bundle: digests, signature, parity of every cut.",
    ),
    "advise": (
        "streamsplit_compile.cli.advise_command:advise_",
        "Compare the ways to run a bundle, and recommend one.",
    ),
    "audit": (
        "streamsplit_compile.cli.audit_command:audit",
        "Measure what a bundle's payloads give away, by attacks.",
    ),
    "diff": ("streamsplit_compile.cli.bundle_commands:diff", "Show what changed between two bundles."),
    "key": ("streamsplit_compile.cli.bundle_commands:key", "Make signing keys."),
    "profile": ("runtime_edge.cli.profile_command:profile", "Measure a bundle's blocks on this device."),
    "bench": ("streamsplit_compile.cli.main:bench", "Measure this device, or compare policies on emulated networks."),
    "bench device": (
        "runtime_edge.cli.bench_device_command:device",
        "Measure this device: times, memory, and energy if there is a meter.",
    ),
    "splitter": ("streamsplit_compile.cli.main:splitter", "Train, judge, explain and push splitter tables."),
    "splitter train": ("streamsplit_compile.cli.splitter_commands:train", "Train a table for a bundle and a target."),
    "splitter show": ("streamsplit_compile.cli.splitter_commands:show", "Show what a table chooses."),
    "splitter eval": (
        "streamsplit_compile.cli.table_commands:evaluate_command",
        "Compare a table with other policies.",
    ),
    "splitter replay": (
        "streamsplit_compile.cli.table_commands:replay",
        "Replay a device's recorded results with a table.",
    ),
    "splitter map": ("streamsplit_compile.cli.table_commands:map_command", "Draw the chosen cuts."),
    "doctor": ("streamsplit_compile.cli.doctor_command:doctor", "Check what is missing here, and how to fix it."),
    "edge": ("runtime_edge.cli.edge_commands:edge", "Run a device."),
}
_EXTRAS = {
    "matplotlib": "demo",
    "onnx": "compile",
    "onnxruntime": "edge",
    "onnxscript": "compile",
    "onnxsim": "compile",
    "paho": "mqtt",
    "pystoi": "audit",
    "rich": "compile",
    "scipy": "compile",
    "sklearn": "bench",
    "starlette": "web",
    "torch": "compile",
    "uvicorn": "web",
}


@functools.cache
def all_commands() -> Commands:
    """The commands of this package and of the installed packages above it."""
    found = dict(COMMANDS)
    for entry in sorted(importlib.metadata.entry_points(group=GROUP)):
        found |= entry.load()
    return found


class LazyGroup(click.Group):
    """Knows its commands by name and imports one when it is used."""

    def __init__(self, *arguments: Any, words: str = "", **settings: Any) -> None:
        """`words` are those that call this group, as in `COMMANDS`; empty for `ssc` itself."""
        super().__init__(*arguments, **settings)
        self._words = f"{words} " if words else ""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of the commands that can run here, in the order of use."""
        return [name for name in self._places() if self._runs_here(name)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command. Raises MissingExtra when an optional package is not there."""
        places = self._places()
        if cmd_name not in places:
            return None
        module_name, attribute = places[cmd_name][0].split(":")
        try:
            command: click.Command = getattr(importlib.import_module(module_name), attribute)
        except ModuleNotFoundError as exc:
            package = (exc.name or "").split(".")[0]
            raise MissingExtra(package, _EXTRAS.get(package, "server")) from None
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing them."""
        places = self._places()
        shown = self.list_commands(ctx)
        with formatter.section("Commands"):
            formatter.write_dl([(name, places[name][1]) for name in shown])
        if len(shown) < len(places):
            formatter.write(f"\n{len(places) - len(shown)} more need an extra: see `ssc doctor`.\n")

    def _runs_here(self, name: str) -> bool:
        """Whether everything a command needs is installed; a group runs if any of its commands does."""
        words, module = f"{self._words}{name}", self._places()[name][0].partition(":")[0]
        inside = [
            place.partition(":")[0] for called, (place, _) in all_commands().items() if called.startswith(f"{words} ")
        ]
        return any(one.startswith(_WITHOUT_TORCH) for one in inside or [module]) or find_spec("torch") is not None

    def _places(self) -> Commands:
        """The commands of this group by their last word."""
        mine = {
            words.removeprefix(self._words): place
            for words, place in all_commands().items()
            if words.startswith(self._words)
        }
        return {name: place for name, place in mine.items() if " " not in name}


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name=DISTRIBUTION)
def ssc() -> None:
    """Split an audio encoder: run its first layers on a device, complete and train the rest on a server.

    Example: ssc encoder new resnet18 -o encoder.pt && ssc compile encoder.pt --targets rpi4,m2 -o bundle/
    """


@click.group(cls=LazyGroup, words="splitter")
def splitter() -> None:
    """Train, judge, explain and push splitter tables.

    Example: ssc splitter train bundle/ --target rpi4 -o table.json
    """


@click.group(cls=LazyGroup, words="bench")
def bench() -> None:
    """Measure this device, or compare policies on emulated networks.

    Example: ssc bench run lte --encoder resnet18 -o bench/
    """


def main(arguments: list[str] | None = None) -> Any:
    """Run `ssc`. Exit codes: 0 done, 1 a check failed, 2 wrong usage or bad input."""
    try:
        return _run(arguments)
    except SscError as exc:
        click.echo(f"ssc: {printable(str(exc), _MAX_ERROR)}", err=True)
        sys.exit(exc.exit_code)
    except click.UsageError as exc:
        command = exc.ctx.command_path if exc.ctx else "ssc"
        click.echo(f"ssc: {_one_line(exc.format_message())} (see `{command} --help`)", err=True)
        sys.exit(2)
    except click.ClickException as exc:
        click.echo(f"ssc: {_one_line(exc.format_message())}", err=True)
        sys.exit(2)
    except OSError as exc:
        # Errors of writing a file already name it.
        name = exc.filename or ("standard output" if exc.errno in _REFUSED_WRITES else "")
        click.echo(f"ssc: {f'{name}: ' if name else ''}{exc.strerror or exc}", err=True)
        sys.exit(2)
    except (click.Abort, KeyboardInterrupt):
        click.echo("ssc: interrupted", err=True)
        sys.exit(130)


def _run(arguments: list[str] | None) -> Any:
    try:
        return ssc.main(arguments, "ssc", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as exc:
        click.echo(exc.format_message())
        sys.exit(0)


def _one_line(text: str) -> str:
    return " ".join(text.split())

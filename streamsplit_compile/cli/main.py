"""The `ssc` command. Groups of other packages are loaded by name, and only when they are asked for."""

from __future__ import annotations

import importlib
import sys
from typing import Any

import click

from runtime_edge.errors import DISTRIBUTION, MissingExtra, SscError

_COMMANDS = {
    "encoder": ("streamsplit_compile.cli.compile_commands:encoder", "Make or list encoders."),
    "compile": ("streamsplit_compile.cli.compile_commands:compile_", "Compile an encoder into a bundle."),
    "inspect": ("streamsplit_compile.cli.bundle_commands:inspect", "Show a bundle's cuts, sizes and predicted costs."),
    "verify": (
        "streamsplit_compile.cli.bundle_commands:verify",
        "Check a bundle: digests, signature, parity of every cut.",
    ),
    "diff": ("streamsplit_compile.cli.bundle_commands:diff", "Show what changed between two bundles."),
    "key": ("streamsplit_compile.cli.bundle_commands:key", "Make signing keys."),
    "profile": ("runtime_edge.cli.profile_command:profile", "Measure a bundle's blocks on this device."),
    "splitter": ("streamsplit_compile.cli.splitter_commands:splitter", "Train, look at and push splitter tables."),
    "doctor": ("streamsplit_compile.cli.doctor_command:doctor", "Say what is missing here and how to mend it."),
    "edge": ("runtime_edge.cli.edge_commands:edge", "Run a device."),
    "server": ("runtime_server.cli.server_commands:server", "Run and look at the server."),
    "deploy": ("runtime_server.cli.server_commands:deploy", "Put a bundle where devices find it."),
    "bench": ("runtime_server.lab.bench_commands:bench", "Measure policies on shaped networks; compare measurements."),
    "demo": ("runtime_server.cli.server_commands:demo", "The whole loop on one machine, with a report."),
}
_EXTRAS = {
    "matplotlib": "demo",
    "onnx": "compile",
    "onnxruntime": "edge",
    "onnxscript": "compile",
    "onnxsim": "compile",
    "rich": "compile",
    "sklearn": "bench",
    "torch": "compile",
}


class LazyGroup(click.Group):
    """Knows its commands by name and imports one when it is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names in the order of use."""
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command. Raises MissingExtra when an optional package is not there."""
        if cmd_name not in _COMMANDS:
            return None
        module_name, attribute = _COMMANDS[cmd_name][0].split(":")
        try:
            command: click.Command = getattr(importlib.import_module(module_name), attribute)
        except ModuleNotFoundError as exc:
            package = (exc.name or "").split(".")[0]
            raise MissingExtra(package, _EXTRAS.get(package, "server")) from None
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in _COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name=DISTRIBUTION)
def ssc() -> None:
    """Cut an audio encoder anywhere, run the front on a device, finish and train the rest on a server.

    Example: ssc encoder new resnet18 -o encoder.pt && ssc compile encoder.pt --targets rpi4,m2 -o bundle/
    """


def main(arguments: list[str] | None = None) -> Any:
    """Run `ssc`. Exit codes: 0 done, 1 the thing asked for did not hold, 2 wrong usage or bad input."""
    try:
        return ssc.main(arguments, standalone_mode=False)
    except SscError as exc:
        print(f"ssc: {exc}", file=sys.stderr)
        sys.exit(exc.exit_code)
    except click.exceptions.NoArgsIsHelpError as exc:
        print(exc.format_message())
        sys.exit(0)
    except click.UsageError as exc:
        command = exc.ctx.command_path if exc.ctx else "ssc"
        print(f"ssc: {_one_line(exc.format_message())} (see `{command} --help`)", file=sys.stderr)
        sys.exit(2)
    except click.ClickException as exc:
        print(f"ssc: {_one_line(exc.format_message())}", file=sys.stderr)
        sys.exit(2)
    except OSError as exc:
        where = f"{exc.filename}: " if exc.filename else ""
        print(f"ssc: {where}{exc.strerror or exc}", file=sys.stderr)
        sys.exit(2)
    except (click.Abort, KeyboardInterrupt):
        print("ssc: interrupted", file=sys.stderr)
        sys.exit(130)


def _one_line(text: str) -> str:
    return " ".join(text.split())

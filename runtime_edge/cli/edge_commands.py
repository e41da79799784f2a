"""`ssc edge`: run a device, install a bundle on it, see how it is doing."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from pathlib import Path
from typing import Any

import click

from runtime_edge.base.files import write_atomic
from runtime_edge.base.logs import configure, flush
from runtime_edge.cli.install_command import install
from runtime_edge.cli.live_line import live_line
from runtime_edge.cli.status_command import status_
from runtime_edge.click_options import ManyOptions
from runtime_edge.config import DeviceConfig
from runtime_edge.device.device import Device
from runtime_edge.device.sinks import JsonLines, Sink
from runtime_edge.errors import UsageError
from runtime_edge.sd_notify import Notifier
from runtime_edge.service.status import acknowledged, completes_none
from runtime_edge.settings import as_toml, common_names, load, options, read


class _Path(click.Path):
    def __init__(self) -> None:
        super().__init__(path_type=Path)


@click.group()
def edge() -> None:
    """Run a device.

    Example: ssc edge run --broker nats://gateway:4222 --target rpi4 --source mic
    """


@edge.command(
    cls=ManyOptions,
    common=[*common_names(DeviceConfig), "config", "as_json", "quiet", "verbose"],
    context_settings={"auto_envvar_prefix": "SSC_EDGE"},
)
@click.option("--config", type=_Path(), help="TOML file of settings; `ssc edge config` prints one.")
@options(DeviceConfig)
@click.option("--json", "as_json", is_flag=True, allow_from_autoenv=False, help="Print the accounting as JSON.")
@click.option("-q", "--quiet", is_flag=True, allow_from_autoenv=False, help="Show no status line on the terminal.")
@click.option("-v", "--verbose", is_flag=True, allow_from_autoenv=False, help="The same as --log-level info.")
def run(config: Path | None, as_json: bool, quiet: bool, verbose: bool, **given: Any) -> None:
    """Run the device until its source ends. For each window it runs a prefix of the encoder, ships the activation and
    receives the embedding.

    Every option is also a key in the file (`--spool-mb` is spool_mb) and an environment variable (SSC_EDGE_SPOOL_MB).
    The command line overrides the environment, which overrides the file.

    Example: ssc edge run --broker nats://gateway:4222 --target rpi4 --source recordings/ --results results.jsonl
    """
    if verbose:
        given["log_level"] = "info"
    settings = load(DeviceConfig, config, given)
    if not settings.has_source:
        raise UsageError("give --source or --watch, or set one of them in the file of --config")
    if settings.broker is None and settings.bundle is None:
        raise UsageError("give --broker, a server's address, or --bundle to run without a server")
    configure(settings.log_level, settings.log_format)
    files: list[Sink] = [JsonLines(path) for path in settings.results]
    # With a log or results on the same terminal, a line that keeps being overwritten is in the way.
    beside = settings.log_level in ("debug", "info") or ("-" in settings.results and sys.stdout.isatty())
    lines = live_line(sys.stderr, settings.device, not quiet and not beside)
    try:
        accounting = asyncio.run(_run(settings, [*files, *lines]))
    finally:
        for line in lines:  # a device that could not start has closed nothing
            line.close()
        flush()
    if settings.report is not None:
        write_atomic(settings.report, json.dumps(accounting, indent=2).encode() + b"\n")
    summary = json.dumps(accounting, indent=2) if as_json else _sentence(accounting)
    if words := completes_none(settings.state, accounting):
        click.echo(f"warning: {words}", err=True)
    click.echo(summary, err="-" in settings.results)  # standard output then belongs to the results


@edge.command("config")
@click.argument("file", required=False, type=_Path())
def config_(file: Path | None) -> None:
    """Print every setting with its default and meaning, as TOML. With FILE, check it and print it in full.

    Example: ssc edge config > ssc-edge.toml
    """
    click.echo(as_toml(DeviceConfig, read(DeviceConfig, file) if file else None), nl=False)


edge.add_command(status_)
edge.add_command(install)


async def _run(config: DeviceConfig, sinks: list[Sink]) -> dict[str, Any]:
    device = Device(config, sinks, Notifier())
    loop = asyncio.get_running_loop()
    for name in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(name, device.stop)
    return await device.run()


def _sentence(report: dict[str, Any]) -> str:
    finished = ", ".join(f"{count} on the {where}" for where, count in sorted(report["finished"].items()))
    lines = [
        f"{report['device']}: {report['windows_captured']} windows, {finished or 'none finished'}",
        f"acknowledged {acknowledged(report)}, refused {report['windows_refused']}, "
        f"spooled {report['windows_spooled']}, kept local {report['windows_local']}, "
        f"dropped {report['windows_dropped']}, lost {report['windows_lost']}",
        f"{report['bytes_sent']:,} bytes sent, {report['bytes_pcm16']:,} as 16-bit PCM",
        f"generation {report['generation_start']} -> {report['generation_end']}, {report['table_swaps']} table swaps",
    ]
    lines += [
        f"  {cut}: {latency['windows']} windows, median {latency['p50']:.1f} ms, p95 {latency['p95']:.1f} ms"
        for cut, latency in report["latency_ms"].items()
    ]
    return "\n".join(lines)

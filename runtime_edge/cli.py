"""`ssc edge`: run a device, install a bundle on it, see how it is doing."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import signal
import socket
from pathlib import Path
from typing import Any

import click

from runtime_edge import minisign
from runtime_edge.config import DeviceConfig
from runtime_edge.device import Device
from runtime_edge.errors import UsageError
from runtime_edge.files import write_atomic
from runtime_edge.results import JsonLines, Sink


class _Path(click.Path):
    def __init__(self) -> None:
        super().__init__(path_type=Path)


@click.group()
def edge() -> None:
    """Run a device.

    Example: ssc edge run --broker nats://gateway:4222 --target rpi4 --source mic
    """


@edge.command()
@click.option("--broker", help="Broker address; without it everything runs here and nothing is shipped.")
@click.option("--bundle", type=_Path(), help="Bundle directory to run instead of the server's release.")
@click.option("--source", required=True, help="mic, a WAV/FLAC file, a directory, or - for PCM16 on stdin.")
@click.option("--target", default="rpi4", show_default=True, help="Which target's releases and tables to follow.")
@click.option("--device", help="This device's name on the broker [default: the host name].")
@click.option("--state", type=_Path(), default=Path("ssc-edge"), show_default=True, help="State directory.")
@click.option("--pub", type=_Path(), help="Public key to trust [default: the server's, pinned at first contact].")
@click.option("--variant", default="onnx-fp32", show_default=True, help="Compiled files to run, such as tflite-int8.")
@click.option("--encoding", type=click.Choice(["int8", "float16", "float32"]), default="int8", show_default=True)
@click.option("--threads", default=1, show_default=True, type=click.IntRange(1, 64), help="Inference threads.")
@click.option("--deadline-ms", default=1000, show_default=True, type=click.IntRange(10), help="Wait for a reply.")
@click.option("--min-cut", help="Privacy floor: never ship anything earlier than this cut.")
@click.option("--spool-mb", default=256, show_default=True, type=click.IntRange(1), help="Disk for unsent frames.")
@click.option("--no-realtime", "realtime", flag_value=False, default=True, help="Read files as fast as possible.")
@click.option("--loop", is_flag=True, help="Start files again at their end.")
@click.option("--gate-db", type=float, help="Ignore windows quieter than this, for example -60.")
@click.option("--stdin-rate", type=click.IntRange(1000, 384000), help="Sample rate of PCM on stdin, Hz.")
@click.option("--stdin-channels", default=1, show_default=True, type=click.IntRange(1, 64))
@click.option("--max-windows", type=click.IntRange(1), help="Stop after so many windows.")
@click.option("--drain-s", default=30.0, show_default=True, help="Send spooled frames so long after the end.")
@click.option("--results", multiple=True, help="JSON lines of results to this file, or - for stdout.")
@click.option("--report", type=_Path(), help="Write the run's accounting here as JSON.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Seed of the splitter's probes.")
@click.option("--json", "as_json", is_flag=True, help="Print the accounting as JSON.")
@click.option("-v", "--verbose", is_flag=True, help="Log what happens.")
def run(
    device: str | None,
    pub: Path | None,
    deadline_ms: int,
    spool_mb: int,
    results: tuple[str, ...],
    report: Path | None,
    as_json: bool,
    verbose: bool,
    **settings: Any,
) -> None:
    """Stream audio: run a prefix of the encoder, ship the activation, take the embedding.

    Example: ssc edge run --broker nats://gateway:4222 --target rpi4 --source recordings/ --results results.jsonl
    """
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    config = DeviceConfig(
        device=device or _host_name(),
        trusted=None if pub is None else minisign.read_public_key(pub),
        deadline_s=deadline_ms / 1e3,
        spool_bytes=spool_mb << 20,
        **settings,
    )
    if config.broker is None and config.bundle is None:
        raise UsageError("give --broker of a server, or --bundle to run one without a server")
    accounting = asyncio.run(_run(config, [JsonLines(path) for path in results]))
    if report is not None:
        write_atomic(report, json.dumps(accounting, indent=2).encode() + b"\n")
    click.echo(json.dumps(accounting, indent=2) if as_json else _sentence(accounting))


async def _run(config: DeviceConfig, sinks: list[Sink]) -> dict[str, Any]:
    device = Device(config, sinks)
    loop = asyncio.get_running_loop()
    for name in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(name, device.stop)
    return await device.run()


def _sentence(report: dict[str, Any]) -> str:
    finished = ", ".join(f"{count} on the {where}" for where, count in sorted(report["finished"].items()))
    lines = [
        f"{report['device']}: {report['windows_captured']} windows, {finished or 'none finished'}",
        f"acknowledged {report['windows_acked']}, spooled {report['windows_spooled']}, "
        f"kept local {report['windows_local']}, lost {report['windows_lost']}",
        f"{report['bytes_sent']:,} bytes sent, {report['bytes_pcm16']:,} as 16-bit PCM",
        f"generation {report['generation_start']} -> {report['generation_end']}, {report['table_swaps']} table swaps",
    ]
    lines += [
        f"  {cut}: {latency['windows']} windows, median {latency['p50']:.1f} ms, p95 {latency['p95']:.1f} ms"
        for cut, latency in report["latency_ms"].items()
    ]
    return "\n".join(lines)


def _host_name() -> str:
    return re.sub(r"[^a-z0-9-]+", "-", socket.gethostname().lower()).strip("-")[:63] or "device"

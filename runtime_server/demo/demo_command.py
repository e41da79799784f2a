"""`ssc demo`."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import click

from runtime_edge.base.text import size
from streamsplit_compile.cli.options import PathParam, json_option
from streamsplit_compile.cli.printing import print_json, print_table


@click.command()
@click.option(
    "--audio",
    type=PathParam(),
    help="Directory of recordings, optionally with labels.csv (filename,class[,fold]) "
    "[default: labelled ones from Debian's packages, else a synthesised soundscape].",
)
@click.option("-o", "--out", type=PathParam(), default=Path("demo-report"), show_default=True, help="Report directory.")
@click.option(
    "--seconds", default=110.0, show_default=True, type=click.FloatRange(10, 3600), help="Minimum streaming time, s."
)
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Seed of everything random.")
@json_option
def demo(audio: Path | None, out: Path, seconds: float, seed: int, as_json: bool) -> None:
    """Show the whole loop on one machine: recognise sounds, train, release, swap a table, write a report.

    The encoder is the trained one that comes with the package: it knows ten words and ten sounds. Debian's recordings
    are downloaded (87 MB) into .cache/demo-recordings once, and not installed.

    Example: ssc demo --audio recordings/ -o demo-report
    """
    # Imported here: matplotlib is slow, and only the demo draws.
    from runtime_server.demo.demo import DemoConfig, run_demo

    summary = asyncio.run(run_demo(DemoConfig(audio, out, seconds, seed=seed, quiet=as_json)))
    if as_json:
        print_json(summary)
        return
    _show(summary)
    click.echo("Report:")
    click.echo((out / "report.html").resolve())


def _show(summary: dict[str, Any]) -> None:
    print_table(
        f"{summary['encoder']} on {summary['audio']}",
        ["device", "right", "windows", "up", "down", "as Opus", "as PCM"],
        [
            [
                name,
                _right(device["heard"]),
                str(device["windows_captured"]),
                size(device["wire_bytes"]["up"]),
                size(device["wire_bytes"]["down"]),
                size(device["bytes_as_opus"]),
                size(device["bytes_as_pcm16"]),
            ]
            for name, device in summary["devices"].items()
        ],
    )
    heard = summary["heard"]
    if heard["recordings"]:
        alone = heard["on_the_device_alone"]
        click.echo(f"{_right(heard)} recordings labelled correctly ({heard['accuracy']:.0%}); ", nl=False)
        click.echo(f"by the device that ships nothing {_right(alone)}")
        for number, part in heard["by_generation"].items():
            click.echo(f"  generation {number}: {_right(part)}")
    click.echo("Latency in ms on this machine, over emulated links; a device's own part, predicted:")
    for cut, latency in summary["latency_ms"].items():
        predicted = ", ".join(
            f"{target} {by_cut[cut]:.1f}" for target, by_cut in sorted(summary["predicted_device_ms"].items())
        )
        click.echo(
            f"  {cut}: {latency['p50']:.0f} (p95 {latency['p95']:.0f}), {latency['windows']} windows; {predicted}"
        )
    click.echo(
        f"{summary['bytes_saved_share']:.0%} fewer bytes than PCM, {summary['training_steps']} training steps, "
        f"generation {summary['generations'][-1]['generation']} last,\n"
        f"parity within {summary['parity_max_abs_error']:.1e}, {summary['duration_s']:.0f} s in all"
    )


def _right(part: dict[str, Any]) -> str:
    return f"{part['right']} of {part['recordings']}" if part["recordings"] else "-"

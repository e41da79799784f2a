"""`ssc demo`."""

from __future__ import annotations

import asyncio
from pathlib import Path

import click

from runtime_edge.base.text import size
from runtime_server.cli import traffic_lines
from streamsplit_compile.cli.options import PathParam, json_option
from streamsplit_compile.cli.printing import print_json, print_table


@click.command()
@click.option("--audio", type=PathParam(), help="Directory of recordings [default: a synthesised soundscape].")
@click.option("-o", "--out", type=PathParam(), default=Path("demo-report"), show_default=True, help="Report directory.")
@click.option("--encoder", default="resnet18", show_default=True, help="A registered encoder.")
@click.option("--cuts", default="auto", show_default=True, help="As in `ssc compile`.")
@click.option(
    "--seconds", default=110.0, show_default=True, type=click.FloatRange(10, 3600), help="Streaming time at least."
)
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Seed of everything random.")
@json_option
def demo(audio: Path | None, out: Path, encoder: str, cuts: str, seconds: float, seed: int, as_json: bool) -> None:
    """The whole loop on one machine: compile, stream, train, recompile, hot-swap, report.

    Example: ssc demo --audio recordings/ -o demo-report
    """
    # Imported here: matplotlib is slow, and only the demo draws.
    from runtime_server.demo.demo import DemoConfig, run_demo

    config = DemoConfig(audio, out, encoder, cuts, seconds, seed=seed, quiet=as_json)
    summary = asyncio.run(run_demo(config))
    if as_json:
        print_json(summary)
        return
    print_table(
        f"{summary['encoder']} on {summary['audio']}",
        ["device", "windows", "acked", "cuts", "sent", "as PCM", "generation", "swaps"],
        [
            [
                name,
                str(device["windows_captured"]),
                str(device["windows_acked"]),
                ", ".join(f"{cut} {count}" for cut, count in sorted(device["cuts_used"].items())),
                size(device["bytes_sent"]),
                size(device["bytes_pcm16"]),
                f"{device['generation_start']} -> {device['generation_end']}",
                str(device["table_swaps"]),
            ]
            for name, device in summary["devices"].items()
        ],
    )
    traffic_lines.show_table(summary["devices"])
    for line in traffic_lines.totals(summary["devices"]):
        click.echo(f"  {line}")
    for cut, latency in summary["latency_ms"].items():
        click.echo(
            f"  {cut}: median {latency['p50']:.1f} ms, p95 {latency['p95']:.1f} ms, {latency['windows']} windows"
        )
    click.echo(
        f"{summary['bytes_saved_share']:.0%} fewer bytes than PCM, "
        f"parity within {summary['parity_max_abs_error']:.1e}, {summary['training_steps']} training steps, "
        f"{summary['duration_s']:.0f} s. Report: {out / 'report.html'}"
    )

"""`ssc splitter`: train a table, look at one, push one to devices."""

from __future__ import annotations

import asyncio
import dataclasses
from collections import Counter
from pathlib import Path

import click

from runtime_edge.bundle import MAX_TABLE_BYTES, open_bundle
from runtime_edge.errors import TableError, UsageError
from runtime_edge.files import read_bounded, write_atomic
from runtime_edge.profile import MAX_PROFILE_BYTES, Profile
from runtime_edge.table import Reward, SplitterTable
from streamsplit_compile.options import (
    PathParam,
    broker_option,
    bundle_argument,
    json_option,
    key_option,
    print_json,
    print_table,
    read_key,
)
from streamsplit_compile.pricing import DEFAULT_TRACES, bundle_actions
from streamsplit_compile.splitter import train_table
from streamsplit_compile.targets import load_target
from streamsplit_compile.traces import synthetic_traces


@click.group()
def splitter() -> None:
    """Train, look at and push splitter tables.

    Example: ssc splitter train bundle/ --target rpi4 -o table.json
    """


@splitter.command()
@bundle_argument
@click.option("--target", required=True, help="A target the bundle was compiled for.")
@click.option("-o", "--out", type=PathParam(), required=True, help="Table file to write.")
@click.option("--profile", "profile_file", type=PathParam(), help="Measured times of the device (`ssc profile`).")
@click.option("--bandwidth", default="0.1,16", show_default=True, help="Uplink range to expect, Mbit/s.")
@click.option("--rtt", default="10,200", show_default=True, help="Round-trip range to expect, ms.")
@click.option("--alpha", type=click.FloatRange(0), help="Weight of agreement [default: 10].")
@click.option("--beta", type=click.FloatRange(0), help="Weight of latency [default: 5].")
@click.option("--eta", type=click.FloatRange(0), help="Weight of energy [default: 3].")
@click.option("--rho", type=click.FloatRange(0), help="Value of windows the server can learn from [default: 0.2].")
@click.option("--probe-rate", default=0.02, show_default=True, type=click.FloatRange(0, 0.2))
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Seed of traces and learner.")
@json_option
def train(
    bundle: Path,
    target: str,
    out: Path,
    profile_file: Path | None,
    bandwidth: str,
    rtt: str,
    alpha: float | None,
    beta: float | None,
    eta: float | None,
    rho: float | None,
    probe_rate: float,
    seed: int,
    as_json: bool,
) -> None:
    """Learn a table by Q-learning on the bundle's costs and synthetic traces (METHOD section 6).

    Example: ssc splitter train bundle/ --target rpi4 --bandwidth 0.5,8 -o table.json
    """
    opened = open_bundle(bundle)
    model = dataclasses.replace(
        DEFAULT_TRACES, bandwidth_mbps=_range(bandwidth, "--bandwidth"), rtt_ms=_range(rtt, "--rtt")
    )
    weights = {"alpha": alpha, "beta": beta, "eta": eta, "rho": rho}
    table = train_table(
        bundle_actions(opened.manifest, target, _read_profile(profile_file)),
        load_target(target),
        encoder=opened.manifest.info.encoder.id,
        cut_names=[cut.name for cut in opened.manifest.info.cuts],
        reward=Reward(**{name: value for name, value in weights.items() if value is not None}),
        seed=seed,
        traces=synthetic_traces(model, 512, 600, seed),
        held_out=synthetic_traces(model, 128, 600, seed + 1_000_003),
        probe_rate=probe_rate,
    )
    write_atomic(out, table.to_json())
    if as_json:
        print_json(table.metrics)
    else:
        _describe(table, str(out))


@splitter.command()
@click.argument("table", type=PathParam())
@json_option
def show(table: Path, as_json: bool) -> None:
    """Show what a table chooses and how it did on held-out traces.

    Example: ssc splitter show bundle/tables/rpi4.json
    """
    read = _read(table)
    if as_json:
        print_json({"target": read.target, "actions": read.actions, "shares": _shares(read), "metrics": read.metrics})
    else:
        _describe(read, str(table))


@splitter.command()
@click.argument("table", type=PathParam())
@click.option("--device", help="Only this device [default: every device of the table's target].")
@broker_option
@key_option
def push(table: Path, device: str | None, broker: str, key: Path | None) -> None:
    """Give running devices another table; it takes effect at their next window.

    Example: ssc splitter push table.json --device pi-1 --key signing.key
    """
    # The server's package stands above this one; it is only asked for by name.
    from importlib import import_module

    hub = import_module("runtime_server.hub").Hub(broker, "splitter")
    read, secret = _read(table), read_key(key)

    async def put() -> None:
        await hub.connect()
        try:
            await hub.put_table(read, secret, device)
        finally:
            await hub.close()

    asyncio.run(put())
    click.echo(f"{table}: pushed to {device or f'every device of {read.target}'}")


def _read(path: Path) -> SplitterTable:
    return SplitterTable.from_json(read_bounded(path, MAX_TABLE_BYTES, TableError), str(path))


def _read_profile(path: Path | None) -> Profile | None:
    return None if path is None else Profile.from_json(read_bounded(path, MAX_PROFILE_BYTES), str(path))


def _shares(table: SplitterTable) -> dict[str, float]:
    """Share of the table's states in which each action is chosen."""
    counts = Counter(table.actions[action] for action in table.policy)
    return {action: round(counts[action] / len(table.policy), 4) for action in table.actions}


def _describe(table: SplitterTable, where: str) -> None:
    shares = _shares(table)
    print_table(
        f"{where}: {table.encoder} on {table.target}",
        ["cut", "bytes", "chosen in"],
        [
            [action, str(size), f"{shares[action]:.0%} of states"]
            for action, size in zip(table.actions, table.action_bytes, strict=True)
        ],
    )
    for name, value in table.metrics.items():
        click.echo(f"  {name} {value:g}")


def _range(text: str, option: str) -> tuple[float, float]:
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"{option} {text!r}: expected two numbers such as 0.5,8") from None
    if not 0 < low < high < 1e6:
        raise UsageError(f"{option} {text!r}: the first must be above 0 and below the second")
    return low, high

"""`ssc bench`: measure policies on shaped networks, and compare two measurements."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import click
import msgspec

from runtime_edge.errors import CheckFailed
from runtime_server.lab.policy_bench import BenchConfig, PolicyBench, read_bench, run_bench, save
from runtime_server.lab.proof.measured_advice import measured_advice, measured_sources
from runtime_server.lab.proof.proof_page import write_page
from runtime_server.lab.proof.proof_report import (
    BEHAVIOUR,
    COSTS,
    QUALITY,
    TIMES,
    TRAFFIC,
    behaviour,
    compare,
    costs,
    quality,
    times,
    traffic,
)
from runtime_server.lab.recorded import RecordedScenario
from runtime_server.lab.scenarios import SCENARIOS, Playable, scenario_named
from streamsplit_compile.advice.advice import Advice
from streamsplit_compile.cli.options import PathParam, json_option, link_option
from streamsplit_compile.cli.printing import print_json, print_table
from streamsplit_compile.cli.tables.advice_tables import print_advice


@click.command()
@click.argument("scenarios", nargs=-1)
@click.option(
    "--encoder", "encoders", multiple=True, default=("resnet18",), show_default=True, help="Encoder's name or file."
)
@click.option("--policy", "policies", multiple=True, help="Play only these policies; pcm16 is the reference.")
@click.option("--target", default="rpi4", show_default=True, help="Device whose pace and energy to use.")
@click.option("--audio", type=PathParam(), help="Directory of recordings [default: a synthesised soundscape].")
@click.option(
    "--seconds", default=60.0, show_default=True, type=click.FloatRange(5, 3600), help="Length of each run, s."
)
@click.option("--repeats", default=2, show_default=True, type=click.IntRange(1, 100), help="Runs of each policy.")
@click.option("--clips-every", default=1, show_default=True, type=click.IntRange(1), help="Take every n-th clip.")
@click.option("--fold", type=click.IntRange(1, 5), help="Play and judge only this fold, and calibrate on the others.")
@click.option(
    "--network",
    default="namespaces",
    show_default=True,
    type=click.Choice(["namespaces", "relay"]),
    help="How to emulate links: with Linux network namespaces, which need root, or with a relay.",
)
@click.option("--meter", type=PathParam(), help="A USB meter's log while this runs: CSV with time_s, watts.")
@click.option("--profile", type=PathParam(), help="Measured costs of the target (`ssc bench device`).")
@click.option("--bundle", type=PathParam(), help="The encoder's bundle [default: compile one on --audio].")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Seed of links, loads and audio.")
@click.option("-o", "--out", type=PathParam(), default=Path("bench"), show_default=True, help="Directory to write to.")
@link_option
@json_option
def run(
    scenarios: tuple[str, ...],
    encoders: tuple[str, ...],
    policies: tuple[str, ...],
    network: str,
    link: str,
    out: Path,
    as_json: bool,
    **settings: object,
) -> None:
    """Play SCENARIOS (default: all) with every policy: real processes, shaped links, paced devices.

    A scenario may also be a recorded trace: a CSV file as `ssc splitter train --traces` reads it, with the radio of
    --link. The other scenarios have their own radios.

    Example: ssc bench run lte walk.csv --encoder mn04.pt --audio recordings/ -o bench/
    """
    config = BenchConfig(
        tuple(_scenario(name, link) for name in scenarios or SCENARIOS),
        encoders,
        policies,
        namespaces=network == "namespaces",
        **settings,  # type: ignore[arg-type]
    )
    found = asyncio.run(run_bench(config, lambda text: click.echo(text, err=True)))
    path = save(found, out)
    write_page(found, out / "bench.md", "Bench")
    if as_json:
        print_json({"file": str(path), "runs": len(found.runs), "advice": _advised(found)})
        return
    show(path)


def _scenario(name: str, link: str) -> Playable:
    path = Path(name)
    return RecordedScenario.read(path, link) if path.suffix == ".csv" else scenario_named(name)


@click.command("show")
@click.argument("file", type=PathParam())
@json_option
def show_command(file: Path, as_json: bool) -> None:
    """Print a measurement's tables.

    Example: ssc bench show bench/bench.json
    """
    if as_json:
        found = read_bench(file)
        print_json({"runs": msgspec.to_builtins(found.runs), "advice": _advised(found)})
        return
    show(file)


def show(file: Path) -> None:
    """Print five tables for each encoder and scenario, and what to do."""
    found = read_bench(file)
    for encoder, scenario in dict.fromkeys((run.encoder, run.scenario) for run in found.runs):
        print_table(f"{encoder}, {scenario}, {found.target}", list(TIMES), times(found, encoder, scenario))
        print_table("", list(COSTS), costs(found, encoder, scenario))
        print_table("", list(QUALITY), quality(found, encoder, scenario))
        print_table("", list(BEHAVIOUR), behaviour(found, encoder, scenario))
        reckoned = f"traffic, both reckoned from runs of {found.seconds:.0f} s; updates are part of it"
        print_table(reckoned, list(TRAFFIC), traffic(found, encoder, scenario))
    for encoder, scenario, advice in _advice(found):
        click.echo(f"\n{encoder}, {scenario}: of the policies that were played")
        print_advice([advice], measured_sources(found))


def _advised(bench: PolicyBench) -> list[str]:
    return [advice.sentence() for _, _, advice in _advice(bench)]


def _advice(bench: PolicyBench) -> Iterator[tuple[str, str, Advice]]:
    for encoder, scenario in dict.fromkeys((run.encoder, run.scenario) for run in bench.runs):
        if (advice := measured_advice(bench, encoder, scenario)) is not None:
            yield encoder, scenario, advice


@click.command("compare")
@click.argument("first", type=PathParam())
@click.argument("second", type=PathParam())
@click.option("--within", default=0.1, show_default=True, type=click.FloatRange(0), help="Largest difference allowed.")
@json_option
def compare_command(first: Path, second: Path, within: float, as_json: bool) -> None:
    """Compare the ratios of two measurements. Exits with 1 if one differs by more than --within.

    Example: ssc bench compare before/bench.json after/bench.json
    """
    found = compare(read_bench(first), read_bench(second))
    if as_json:
        print_json([dict(zip(("where", "ratio", "first", "second", "difference"), row, strict=True)) for row in found])
    else:
        print_table(
            f"{first} and {second}",
            ["where", "ratio to pcm16", "first", "second", "difference"],
            [[where, name, f"{one:.3f}", f"{other:.3f}", f"{by:.1%}"] for where, name, one, other, by in found],
        )
    worst = max(found, key=lambda row: row[-1])
    if worst[-1] > within:
        raise CheckFailed(f"{worst[0]}: {worst[1]} differs by {worst[-1]:.1%}, more than {within:.0%}")

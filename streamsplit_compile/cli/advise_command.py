"""`ssc advise`: what each way of running a bundle would cost, and what to do."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from runtime_edge.base.text import size
from runtime_edge.errors import UsageError
from runtime_edge.formats.bundle import open_bundle
from streamsplit_compile.advice.advice import Advice, Estimate, advise, sources
from streamsplit_compile.cli.options import (
    bundle_argument,
    json_option,
    link_option,
    measured_profile,
    parse_targets,
    profile_option,
)
from streamsplit_compile.cli.printing import print_json, print_table


@click.command("advise")
@bundle_argument
@click.option("--target", "targets", help="Targets of the bundle, or TOML files, comma-separated [default: all].")
@link_option
@profile_option
@click.option(
    "--active",
    default=1.0,
    show_default=True,
    type=click.FloatRange(0, 1, min_open=True),
    help="Share of the time that a device listens.",
)
@click.option(
    "--battery-wh",
    default=37.0,
    show_default=True,
    type=click.FloatRange(0, min_open=True),
    help="Energy of a battery: 37 is 10 Ah at 3.7 V.",
)
@click.option("--per-gb", type=click.FloatRange(0), help="What a gigabyte costs, in whatever currency.")
@json_option
def advise_(
    bundle: Path,
    targets: str | None,
    link: str,
    profile_file: Path | None,
    active: float,
    battery_wh: float,
    per_gb: float | None,
    as_json: bool,
) -> None:
    """Say what each way of running a bundle would cost on a device and a link, and what to do.

    Example: ssc advise bundle/ --target rpi4,m2 --link lte
    """
    opened, profile = open_bundle(bundle), measured_profile(profile_file)
    chosen = parse_targets(targets if targets is not None else ",".join(sorted(opened.manifest.info.targets)))
    if profile is not None and profile.target not in [target.name for target in chosen]:
        raise UsageError(f"--profile {profile_file}: it is of {profile.target}, which is none of the targets asked for")
    found = advise(opened, chosen, link, profile)
    if as_json:
        print_json([_as_json(advice, active, battery_wh, per_gb) for advice in found])
        return
    for advice in found:
        _print(advice, active, battery_wh, per_gb)
    for line in sources(found):
        click.echo(f"  {line}")
    for advice in found:
        click.echo(f"\n{advice.sentence(active)}")


def _print(advice: Advice, active: float, battery_wh: float, per_gb: float | None) -> None:
    print_table(
        f"a window on {advice.target} over {advice.link}",
        ["policy", "answer ms", "up", "down", "mJ", "agreement", "memory"],
        [
            [one.policy, _answers(one), size(round(one.up_bytes)), size(round(one.down_bytes)),
             f"{one.above_idle_mj:.0f}", f"{one.agreement:.3f}", f"{one.memory_mb:.1f} MB"]
            for one in advice.estimates
        ],
    )  # fmt: skip
    cost = [] if per_gb is None else ["cost"]
    print_table(
        f"a month of it, {active:.0%} of the time, with idle power of {advice.estimates[0].idle_mj:.0f} mJ a window",
        ["policy", "GB", "Wh", f"hours on {battery_wh:g} Wh", *cost],
        [
            [one.policy, f"{one.gb_a_month(active):.3g}", f"{one.wh_a_month(active):.0f}",
             f"{one.battery_hours(battery_wh, active):.1f}",
             *([] if per_gb is None else [f"{per_gb * one.gb_a_month(active):.2f}"])]
            for one in advice.estimates
        ],
    )  # fmt: skip
    for line in advice.left_out:
        click.echo(f"  left out: {line}")


def _answers(one: Estimate) -> str:
    first, final = f"{one.first_ms:.0f}", f"{one.final_ms:.0f}"
    return first if first == final else f"{first}, {final}"


def _as_json(advice: Advice, active: float, battery_wh: float, per_gb: float | None) -> dict[str, Any]:
    return {
        "target": advice.target,
        "link": advice.link,
        "times": advice.provenance,
        "advice": advice.sentence(active),
        "best": advice.best.policy,
        "left_out": list(advice.left_out),
        "policies": [
            asdict(one)
            | {
                "gb_a_month": one.gb_a_month(active),
                "wh_a_month": one.wh_a_month(active),
                "battery_hours": one.battery_hours(battery_wh, active),
            }
            | ({} if per_gb is None else {"cost_a_month": per_gb * one.gb_a_month(active)})
            for one in advice.estimates
        ],
        "sources": sources([advice]),
    }

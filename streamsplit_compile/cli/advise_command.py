"""`ssc advise`: compares the ways to run a bundle, and recommends one."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from runtime_edge.errors import UsageError
from runtime_edge.formats.bundle import open_bundle
from streamsplit_compile.advice.advice import Advice, advise, sources
from streamsplit_compile.bundle.bundle_summary import privacy_range
from streamsplit_compile.cli.options import (
    bundle_argument,
    json_option,
    link_option,
    measured_profile,
    parse_targets,
    profile_option,
    renamed,
)
from streamsplit_compile.cli.printing import print_json
from streamsplit_compile.cli.tables.advice_tables import BATTERY_WH, print_advice


@click.command("advise")
@bundle_argument
@renamed(
    "--targets", "--target", "targets", help="Targets of the bundle, or TOML files, comma-separated [default: all]."
)
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
    default=BATTERY_WH,
    show_default=True,
    type=click.FloatRange(0, min_open=True),
    help="Energy of the battery, Wh: 37 is 10 Ah at 3.7 V.",
)
@click.option("--per-gb", type=click.FloatRange(0), help="Price of a gigabyte, in any currency.")
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
    """Compare the costs of the ways to run a bundle on a device and a link, and recommend one.

    Example: ssc advise bundle/ --targets rpi4,m2 --link lte
    """
    opened, profile = open_bundle(bundle), measured_profile(profile_file)
    chosen = parse_targets(targets if targets is not None else ",".join(sorted(opened.manifest.info.targets)))
    if profile is not None and profile.target not in [target.name for target in chosen]:
        raise UsageError(f"--profile {profile_file}: it is of {profile.target}, which is none of the targets asked for")
    found = advise(opened, chosen, link, profile)
    if as_json:
        print_json([_as_json(advice, active, battery_wh, per_gb) for advice in found])
        return
    print_advice(found, sources(found), active, battery_wh, per_gb)
    if opened.manifest.info.privacy is not None:
        click.echo(privacy_range(opened.manifest.info.privacy))


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

"""`ssc server releases`, and the options of `ssc server run` that say when and to whom generations are released."""

from __future__ import annotations

import time
from typing import Any

import click

from runtime_edge.base.text import size
from runtime_edge.formats.credentials import Address
from runtime_server.cli.server_options import ask, broker_option
from runtime_server.releases.head_judge import WITHOUT_CLIPS
from runtime_server.releases.release_gate import ReleaseConfig
from runtime_server.releases.rollout import RolloutConfig
from runtime_server.releases.rollout_service import RolloutAction, request
from streamsplit_compile.cli.options import PathParam, json_option, together
from streamsplit_compile.cli.printing import print_json, print_table

release_options = together(
    click.option("--release-steps", default=50, show_default=True, type=click.IntRange(1), help="Steps between tries."),
    click.option("--release-s", type=click.FloatRange(0), help="Also try after this many seconds, if anything is new."),
    click.option(
        "--release-least-s",
        default=ReleaseConfig.least_s,
        show_default=True,
        type=click.FloatRange(0),
        help="Seconds from one release to the next at least: every device fetches each of them.",
    ),
    click.option(
        "--release-tolerance",
        default=0.02,
        show_default=True,
        type=click.FloatRange(-1, 1),
        help="Share by which the held-out loss may rise; negative: by which it must fall.",
    ),
    click.option("--probe", type=PathParam(), help="Labelled recordings (folder or CSV) no release may lose on."),
    click.option(
        "--canary-share",
        default=RolloutConfig.canary_share,
        show_default=True,
        type=click.FloatRange(0, 1),
        help="Share of the devices that take a generation first.",
    ),
    click.option(
        "--canary-from",
        default=RolloutConfig.canary_from,
        show_default=True,
        type=click.IntRange(1),
        help="With fewer devices all take it at once.",
    ),
    click.option(
        "--healthy-s",
        default=RolloutConfig.healthy_s,
        show_default=True,
        type=click.FloatRange(0),
        help="Promote a generation this many seconds after its release, if the devices that have it are well.",
    ),
    click.option(
        "--update-mb-per-day",
        type=click.FloatRange(0, min_open=True),
        help="Budget: MB a day that releases may take of each device; what is unused adds up for 7 days [default: as "
        "the devices say].",
    ),
)
"""When generations are released, and to whom first."""


def release_configs(settings: dict[str, Any]) -> dict[str, Any]:
    """Take those options out of a command's settings; the fields of ServerConfig they make."""
    release = ReleaseConfig(
        every_steps=settings.pop("release_steps"),
        every_s=settings.pop("release_s"),
        least_s=settings.pop("release_least_s"),
        tolerance=settings.pop("release_tolerance"),
    )
    rollout = RolloutConfig(**{name: settings.pop(name) for name in _ROLLOUT})
    return {"release": release, "rollout": rollout}


_ROLLOUT = ("canary_share", "canary_from", "healthy_s", "update_mb_per_day")
_generation = click.argument("generation", required=False, type=click.IntRange(1))


@click.group()
def releases() -> None:
    """List, promote, roll back and pin the generations of a running server.

    Example: ssc server releases list --broker nats://127.0.0.1:4222
    """


@releases.command("list")
@broker_option
@json_option
def list_(broker: Address, as_json: bool) -> None:
    """Show the generations that were released and how they went.

    Example: ssc server releases list
    """
    _carry_out(broker, "list", None, as_json)


@releases.command()
@_generation
@broker_option
@json_option
def promote(generation: int | None, broker: Address, as_json: bool) -> None:
    """Give the generation on trial, or another one, to all devices now.

    Example: ssc server releases promote
    """
    _carry_out(broker, "promote", generation, as_json)


@releases.command()
@_generation
@broker_option
@json_option
def rollback(generation: int | None, broker: Address, as_json: bool) -> None:
    """Go back to the stable generation, to the one before it, or to another one.

    Example: ssc server releases rollback 3
    """
    _carry_out(broker, "rollback", generation, as_json)


@releases.command()
@_generation
@broker_option
@json_option
def pin(generation: int | None, broker: Address, as_json: bool) -> None:
    """Keep all devices on the present generation, or on another one: nothing is released until `unpin`.

    Example: ssc server releases pin 3
    """
    _carry_out(broker, "pin", generation, as_json)


@releases.command()
@broker_option
@json_option
def unpin(broker: Address, as_json: bool) -> None:
    """Let generations be released again, at once.

    Example: ssc server releases unpin
    """
    _carry_out(broker, "unpin", None, as_json)


def _carry_out(broker: Address, action: RolloutAction, generation: int | None, as_json: bool) -> None:
    found = ask(broker, "releases", lambda hub: request(hub, action, generation))
    if as_json:
        print_json(found)
        return
    print_table(
        "Releases",
        ["generation", "status", "share", "age", "devices", "proven", "held-out loss", "in full", "as patches", "why"],
        [_row(release) for release in found["releases"]],
    )
    if found["held"]:
        click.echo(f"automatic releases are on hold: {found['held']}")
    if found["paced"]:
        click.echo(found["paced"])
    for line in attempt_lines(found):
        click.echo(line)


def attempt_lines(found: dict[str, Any]) -> list[str]:
    """What came of the last attempt at a release, where that was nothing, and which heads had no say."""
    lines = [
        f"generation {one['generation']} is not released (training step {one['steps']}): {one['reason']}"
        for one in found.get("refused", [])
    ]
    return [*lines, *(f"head {head} judges no release: {WITHOUT_CLIPS}" for head in found.get("unjudged", []))]


def _row(release: dict[str, Any]) -> list[str]:
    losses = [release["held_out_before"], release["held_out_after"]]
    marks = [name for name in ("pinned", "retired") if release[name]]
    return [
        str(release["generation"]),
        ", ".join([release["status"], *marks]),
        f"{release['share']:.0%}",
        _age(time.time() - release["released_at"]),
        str(release["devices"]),
        str(release["devices_proven"]),
        "" if None in losses else f"{losses[0]:.4f} -> {losses[1]:.4f}",
        size(release["full_bytes"]),
        size(release["patch_bytes"]),
        release["reason"],
    ]


def _age(seconds: float) -> str:
    """For people."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"

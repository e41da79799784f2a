"""`ssc server releases`: the released generations, and who runs them."""

from __future__ import annotations

import time
from typing import Any

import click

from runtime_edge.base.text import size
from runtime_edge.formats.credentials import Address
from runtime_server.cli.server_options import ask, broker_option
from runtime_server.releases.head_judge import WITHOUT_CLIPS
from runtime_server.releases.rollout_service import RolloutAction, request
from streamsplit_compile.cli.options import json_option
from streamsplit_compile.cli.printing import print_json, print_table

_generation = click.argument("generation", required=False, type=click.IntRange(1))


@click.group()
def releases() -> None:
    """List, promote, roll back and pin generations. The server must be running.

    Example: ssc server releases list --broker nats://127.0.0.1:4222
    """


@releases.command("list")
@broker_option
@json_option
def list_(broker: Address, as_json: bool) -> None:
    """List the released generations and their outcomes.

    Example: ssc server releases list
    """
    _carry_out(broker, "list", None, as_json)


@releases.command()
@_generation
@broker_option
@json_option
def promote(generation: int | None, broker: Address, as_json: bool) -> None:
    """Give a generation to all devices now [default: the one on trial].

    Example: ssc server releases promote
    """
    _carry_out(broker, "promote", generation, as_json)


@releases.command()
@_generation
@broker_option
@json_option
def rollback(generation: int | None, broker: Address, as_json: bool) -> None:
    """Go back to an earlier generation. Without GENERATION it is the stable one, or the one before it.

    Example: ssc server releases rollback 3
    """
    _carry_out(broker, "rollback", generation, as_json)


@releases.command()
@_generation
@broker_option
@json_option
def pin(generation: int | None, broker: Address, as_json: bool) -> None:
    """Keep all devices on one generation [default: the current one]. Nothing is released until `unpin`.

    Example: ssc server releases pin 3
    """
    _carry_out(broker, "pin", generation, as_json)


@releases.command()
@broker_option
@json_option
def unpin(broker: Address, as_json: bool) -> None:
    """Allow releases again, at once.

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
    """Why the last attempt at a release gave none, and which heads were not consulted."""
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
    """A duration for people to read."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"

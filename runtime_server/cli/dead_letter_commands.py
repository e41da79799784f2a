"""`ssc server dead`: frames that could not be completed, and why."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import click

from runtime_edge.base.files import write_atomic
from runtime_edge.base.text import printable, size
from runtime_edge.errors import FrameError
from runtime_edge.formats.credentials import Address
from runtime_edge.formats.wire import WIRE_ENCODINGS, decode_frame
from runtime_server.cli.server_options import ask, broker_option
from runtime_server.ingest import dead_letters
from runtime_server.ingest.dead_letters import DeadLetter
from streamsplit_compile.cli.options import PathParam, json_option
from streamsplit_compile.cli.printing import print_json, print_table

_Result = TypeVar("_Result")


@click.group()
def dead() -> None:
    """Inspect frames that could not be completed.

    Example: ssc server dead list --broker nats://127.0.0.1:4222
    """


@dead.command("list")
@click.option(
    "--limit", default=20, show_default=True, type=click.IntRange(1, 1000), help="How many to show, newest first."
)
@broker_option
@json_option
def list_(limit: int, broker: Address, as_json: bool) -> None:
    """Show the last dead letters.

    Example: ssc server dead list --limit 50
    """
    found = ask(broker, "dead", lambda hub: dead_letters.newest(hub, limit))
    if as_json:
        print_json([_record(letter) for letter in found])
        return
    rows = [[str(letter.number), _time(letter), letter.device, size(letter.size), letter.reason] for letter in found]
    print_table(f"{len(rows)} dead letters", ["number", "time", "device", "size", "reason"], rows)


@dead.command()
@click.argument("number", type=click.IntRange(1))
@click.option("-o", "--out", type=PathParam(), help="Write the frame here.")
@broker_option
@json_option
def show(number: int, out: Path | None, broker: Address, as_json: bool) -> None:
    """Show one dead letter and the contents of its frame.

    Example: ssc server dead show 7 -o frame.bin
    """
    letter = ask(broker, "dead", lambda hub: dead_letters.get(hub, number))
    record = _record(letter) | {"header": _header(letter.frame)}
    if out is not None:
        write_atomic(out, letter.frame)
    if as_json:
        print_json(record)
        return
    for name, value in record.items():
        click.echo(f"{name.replace('_', ' '):12} {printable(str(value))}")


@dead.command()
@click.option("--device", help="Only those of this device.")
@broker_option
@json_option
def purge(device: str | None, broker: Address, as_json: bool) -> None:
    """Remove dead letters.

    Example: ssc server dead purge --device pi-1
    """
    removed = ask(broker, "dead", lambda hub: dead_letters.purge(hub, device))
    if as_json:
        print_json({"removed": removed})
    else:
        click.echo(f"{removed} dead letters removed")


def _record(letter: DeadLetter) -> dict[str, Any]:
    return {
        "number": letter.number,
        "time": _time(letter),
        "device": letter.device,
        "reason": letter.reason,
        "subject": letter.subject,
        "sequence": letter.sequence,
        "message_id": letter.message_id,
        "bytes": letter.size,
    }


def _header(frame: bytes) -> dict[str, Any] | str:
    """The frame's own header, or why it cannot be read."""
    try:
        windows = decode_frame(frame)
    except FrameError as exc:
        return str(exc)
    header, payload = windows[0]
    return {
        "window": header.window,
        "windows": len(windows),
        "generation": header.generation,
        "cut": header.cut,
        "encoding": WIRE_ENCODINGS[header.encoding],
        "payload_bytes": len(payload),
    }


def _time(letter: DeadLetter) -> str:
    return letter.time.isoformat(timespec="seconds") if letter.time else ""

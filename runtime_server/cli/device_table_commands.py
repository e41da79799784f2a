"""`ssc splitter push`, `merge` and `explain`: the commands about tables that talk to devices."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TypeVar

import click
import msgspec

from runtime_edge.base.files import read_bounded
from runtime_edge.base.text import printable
from runtime_edge.errors import TableError, UsageError
from runtime_edge.formats.credentials import Address
from runtime_edge.formats.records.envelope import open_record
from runtime_edge.formats.records.learnt import MAX_LEARNT_BYTES, Learnt
from runtime_edge.formats.records.table import SplitterTable
from runtime_server.broker.hub import Hub
from runtime_server.cli.server_access import check_signed, signing_key
from runtime_server.cli.server_options import ask, broker_option, server_option
from streamsplit_compile.bundle.bundle_writer import write_table
from streamsplit_compile.cli.options import PathParam, json_option, key_option, read_key
from streamsplit_compile.cli.printing import print_json, print_table
from streamsplit_compile.cli.splitter_commands import read_table, seed_option
from streamsplit_compile.splitter.evaluation import evaluate
from streamsplit_compile.splitter.explain import Explanation, with_unit
from streamsplit_compile.splitter.explain import explain as explain_state
from streamsplit_compile.splitter.merge import merge
from streamsplit_compile.splitter.table_training import default_held_out

_SHOWN = 3
"""How many reasons for left-out records are shown."""
_Result = TypeVar("_Result")


@click.command()
@click.argument("table", type=PathParam())
@click.option("--device", help="Only this device [default: every device of the table's target].")
@server_option
@key_option
@json_option
def push(table: Path, device: str | None, broker: Address, state: Path | None, key: Path | None, as_json: bool) -> None:
    """Give running devices another table, from their next window on. It is signed with --key or --state's key.

    Example: ssc splitter push table.json --device pi-1 --state server/
    """
    read, secret = read_table(table), signing_key(key, state)
    check_signed(broker, secret)
    ask(broker, "splitter", lambda hub: hub.put_table(read, secret, device))
    if as_json:
        print_json({"table": read.digest, "target": read.target, "device": device})
    else:
        click.echo(f"{table}: pushed to {device or f'every device of {read.target}'}")


@click.command("merge")
@click.argument("table", type=PathParam())
@click.option("-o", "--out", type=PathParam(), required=True, help="Table file to write.")
@click.option("--learnt", multiple=True, type=PathParam(), help="A device's learnt.json [default: ask the broker].")
@seed_option
@broker_option
@key_option
@json_option
def merge_command(
    table: Path, out: Path, learnt: tuple[Path, ...], seed: int, broker: Address, key: Path | None, as_json: bool
) -> None:
    """Merge what devices learnt with --learn into the table that they ran.

    Example: ssc splitter merge table.json --broker nats://gateway:4222 -o next.json
    """
    read = read_table(table)
    left_out: dict[str, str] = {}
    if learnt:
        records = [Learnt.from_json(read_bounded(path, MAX_LEARNT_BYTES, TableError), str(path)) for path in learnt]
    else:
        found = ask(broker, "splitter", lambda hub: hub.learnt())
        records, left_out = readable(found, read)
        if left_out and not records:
            raise UsageError(f"no learnt values to merge: {'; '.join(sorted(left_out.values())[:_SHOWN])}")
    merged = merge(read, records)
    merged = msgspec.structs.replace(merged, metrics=evaluate(merged, default_held_out(seed)).metrics())
    write_table(out.parent, out.name, merged.to_json(), read_key(key))
    changed = sum(before != after for before, after in zip(read.policy, merged.policy, strict=True))
    if as_json:
        print_json({"devices": len(records), "changed_rows": changed, "metrics": merged.metrics, "left_out": left_out})
    else:
        for why in left_out.values():
            click.echo(f"left out: {printable(why)}")
        click.echo(f"{out}: {len(records)} devices, another choice in {changed} of {len(merged.policy)} states")


def readable(found: dict[str, bytes], table: SplitterTable) -> tuple[list[Learnt], dict[str, str]]:
    """What devices have learnt on this table, and by device why a record is left out instead of merged."""
    records, left_out = [], {}
    for device, data in sorted(found.items()):
        source = f"learnt values of {device}"
        try:
            record = Learnt.from_json(data, source)
            if record.device != device:
                raise TableError(f"{source}: device: names another device")
            if record.target == table.target:
                record.check(table, source)
                records.append(record)
        except TableError as exc:
            left_out[device] = str(exc)
    return records, left_out


@click.command()
@click.argument("table", type=PathParam(), required=False)
@click.option("--device", help="Explain a running device's state, with its table unless TABLE is given.")
@click.option(
    "--at",
    help="Without --device: the state to explain, such as bandwidth_mbps=2,cpu=0.3,rtt_ms=60,uncertainty=0.4.",
)
@functools.partial(server_option, directory=False)
@json_option
def explain(
    table: Path | None, at: str | None, state: Path | None, device: str | None, broker: Address, as_json: bool
) -> None:
    """Show what a table chooses in a state, the reward of every cut, and what would change the choice.

    Example: ssc splitter explain table.json --at bandwidth_mbps=2,cpu=0.3,rtt_ms=60,uncertainty=0.4
    """
    read = None if table is None else read_table(table)
    if device is None:
        at = at if at is not None or state is None else str(state)  # as it was called until 0.1.0
        if at is None:
            raise UsageError("give --at, or --device of a running device")
        if read is None:
            raise UsageError("give a table file, or --device of a running device")
        values = _parse_state(at)
    else:
        if at is not None:
            raise UsageError(f"--at {at}: with --device its own state is explained; leave out one of them")
        values, running = _state_of(broker, device)
        read = read if read is not None else running
    found = explain_state(read, values)
    if as_json:
        print_json(
            {
                "state": found.state,
                "chosen": found.chosen,
                "row": found.row,
                "q": found.q,
                "terms": {name: {**item._asdict(), "total": item.total} for name, item in found.terms.items()},
                "changes": [
                    {"variable": t.variable, "above": t.above, "edge": t.edge, "action": t.action} for t in found.turns
                ],
            }
        )
    else:
        _print_explanation(read, found)


def _print_explanation(table: SplitterTable, found: Explanation) -> None:
    state = ", ".join(f"{name} {with_unit(name, value)}" for name, value in found.state.items())
    print_table(
        f"{found.chosen} is chosen at {state}",
        [
            "cut",
            "latency ms",
            "energy mJ",
            "quality",
            "learning",
            "delay",
            "energy",
            "limits",
            "reward",
            "Q of the row",
        ],
        [
            [
                f"{name} <-" if name == found.chosen else name,
                f"{t.latency_ms:.1f}",
                f"{t.energy_mj:.1f}",
                *(f"{value:.2f}" for value in (t.quality, t.learning, t.delay, t.energy, t.limits, t.total)),
                f"{found.q[name]:.3f}",
            ]
            for name, t in found.terms.items()
        ],
    )
    click.echo("Q is the discounted mean over all windows in the row's bins; the choice is its largest.")
    if found.turns:
        click.echo("Another choice with")
        for turn in found.turns:
            click.echo(f"  {turn}")
    else:
        click.echo("No change of a single state variable changes the choice.")
    click.echo(
        f"A running device changes only when another cut is better by more than {found.margin:g}, and keeps it "
        f"{table.dwell} windows while link and load stay."
    )


def _parse_state(text: str) -> dict[str, float]:
    try:
        pairs = [part.split("=") for part in text.split(",")]
        return {name.strip(): float(value) for name, value in pairs}
    except ValueError:
        raise UsageError(f"--at {text!r}: expected name=number pairs such as cpu=0.3,rtt_ms=60") from None


def _state_of(broker: Address, device: str) -> tuple[dict[str, float], SplitterTable]:
    """The state from which a running device last decided, and the table it was given."""
    report = ask(broker, "splitter", lambda hub: hub.presence()).get(device)
    if report is None:
        raise UsageError(f"--device {device}: not seen on {broker} in the last minute")
    state = report.get("state")
    if not isinstance(state, dict) or not state:
        raise UsageError(f"--device {device}: it has not decided on a window yet")
    target = report.get("target")
    values = {str(name): float(value) for name, value in state.items() if isinstance(value, (int, float))}
    if not isinstance(target, str) or len(values) < len(state):
        raise UsageError(f"--device {device}: its report has a target or a state that cannot be read")

    async def given(hub: Hub) -> bytes | None:
        return await hub.table(target, device) or await hub.table(target)

    record = ask(broker, "splitter", given)
    if record is None:
        raise UsageError(f"--device {device}: the broker holds no table for it; name its table file")
    source = f"table of {device}"
    given_table = SplitterTable.from_json(open_record(record, "table", None, None, source).body, source)
    return values, given_table

"""`ssc server status`: a running server and its devices, for people and programs."""

from __future__ import annotations

from typing import Any

import click

from runtime_edge.errors import LinkError
from runtime_edge.formats.credentials import Address
from runtime_server.broker.hub import Hub
from runtime_server.cli.ask import ask
from streamsplit_compile.cli.options import broker_option, json_option
from streamsplit_compile.cli.printing import print_json, print_table, size

_SHOWN_RELEASES = 3


@click.command()
@broker_option
@json_option
def status(broker: Address, as_json: bool) -> None:
    """Show a running server and its devices.

    Example: ssc server status --broker nats://127.0.0.1:4222
    """
    found = ask(broker, "status", _status)
    if as_json:
        print_json(found)
        return
    for line in server_lines(found["server"]):
        click.echo(line)
    windows = found["server"]["windows"]
    rows = [device_row(name, report, windows.get(name, 0)) for name, report in sorted(found["devices"].items())]
    columns = ["device", "target", "generation", "cut", "captured", "arrived", "spooled", "sent", "seen"]
    print_table(f"{len(rows)} devices are there, {len(windows)} have sent windows", columns, rows)


async def _status(hub: Hub) -> dict[str, Any]:
    server: dict[str, Any] = await hub.server_status()
    try:
        reports = await hub.last_reports()
    except LinkError as exc:  # the server may know why
        server["troubles"] = [*server.get("troubles", []), str(exc)]
        reports = {}
    devices = {name: {**report, "seen_s": round(age_s, 1)} for name, (report, age_s) in reports.items()}
    return {"server": server, "devices": devices}


def server_lines(own: dict[str, Any]) -> list[str]:
    """What a server's status says, in a few lines."""
    odd = {name: count for name, count in sorted(own["counters"].items()) if name != "windows" and count}
    loss = own["losses"][-1].get("total") if own["losses"] else None
    lines = [
        *(f"trouble: {trouble}" for trouble in own.get("troubles", [])),
        f"{own['encoder']}, generation {own['generation']}, up {_duration(own['uptime_s'])}",
        f"{sum(own['windows'].values())} windows arrived"
        + "".join(f", {count} {name.replace('_', ' ')}" for name, count in odd.items()),
        f"{own['training_steps']} training steps" + ("" if loss is None else f", loss {loss:.3f}"),
    ]
    for rank in own.get("ranks", []):
        well = (
            "does not answer" if rank.get("missing") else f"{rank['windows']} windows, up {_duration(rank['uptime_s'])}"
        )
        lines.append(f"rank {rank['rank']}: {well}")
    for entry in own["rollout"]["releases"][:_SHOWN_RELEASES]:
        proven = f"{entry['devices']} devices, {entry['devices_proven']} of them proven"
        lines.append(f"release {entry['generation']}: {entry['status']}, {proven}")
    return lines


def device_row(name: str, report: dict[str, Any], arrived: int) -> list[str]:
    """A device's row. Nobody checks what it says of itself, so nothing here relies on types or on harmless text."""
    cuts = report.get("cuts")
    counted = {cut: count for cut, count in cuts.items() if isinstance(count, int)} if isinstance(cuts, dict) else {}
    sent = report.get("bytes_sent")
    return [
        name,
        _text(report.get("target")),
        _text(report.get("generation_end")),
        _text(max(counted, key=lambda cut: counted[cut], default=None)),
        _text(report.get("windows_captured")),
        str(arrived),
        _text(report.get("windows_spooled")),
        size(sent) if isinstance(sent, int) and sent >= 0 else "-",
        f"{_duration(report['seen_s'])} ago",
    ]


def _text(value: object) -> str:
    """At most 32 characters that neither the terminal nor the table acts on."""
    return "".join(char for char in str("-" if value is None else value)[:32] if char.isprintable() and char != "[")


def _duration(seconds: float) -> str:
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"

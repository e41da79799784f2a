"""`ssc server status`: a running server and its devices, for people and programs."""

from __future__ import annotations

from typing import Any

import click

from runtime_edge.base.text import duration, printable, size
from runtime_edge.errors import LinkError
from runtime_edge.formats.credentials import Address
from runtime_server.broker.hub import Hub, LastReports
from runtime_server.cli import traffic_lines
from runtime_server.cli.server_options import ask, broker_option
from streamsplit_compile.cli.options import json_option
from streamsplit_compile.cli.printing import print_json, print_table

_SHOWN_RELEASES = 3
_SHOWN_UNREADABLE = 5


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
    devices = found["devices"]
    told = traffic_lines.totals(devices) + traffic_lines.waiting(devices)
    for line in [*server_lines(found["server"]), *told, *unreadable_lines(found["unreadable"])]:
        click.echo(printable(line))
    windows = found["server"]["windows"]
    rows = [device_row(name, report, windows.get(name, 0)) for name, report in sorted(devices.items())]
    columns = ["device", "target", "generation", "cut", "captured", "arrived", "spooled", "sent", "seen"]
    print_table(f"{len(rows)} devices are there, {len(windows)} have sent windows", columns, rows)
    if devices:
        traffic_lines.show_table(devices)


async def _status(hub: Hub) -> dict[str, Any]:
    server: dict[str, Any] = await hub.server_status()
    try:
        reports = await hub.last_reports()
    except LinkError as exc:  # the server may know why
        server["troubles"] = [*server.get("troubles", []), str(exc)]
        reports = LastReports()
    devices = {name: {**report, "seen_s": round(age_s, 1)} for name, (report, age_s) in reports.read.items()}
    traffic = traffic_lines.as_json(devices)
    return {"server": server, "devices": devices, "traffic": traffic, "unreadable": reports.unreadable}


def unreadable_lines(unreadable: dict[str, str]) -> list[str]:
    """Which reports cannot be read: the first few with their reasons, and how many more there are."""
    lines = [f"no report: {why}" for _, why in sorted(unreadable.items())[:_SHOWN_UNREADABLE]]
    more = len(unreadable) - len(lines)
    return [*lines, f"no report: {more} more that cannot be read"] if more else lines


def server_lines(own: dict[str, Any]) -> list[str]:
    """A server's status in a few lines."""
    odd = {name: count for name, count in sorted(own["counters"].items()) if name != "windows" and count}
    loss = own["losses"][-1].get("total") if own["losses"] else None
    lines = [
        *(f"trouble: {trouble}" for trouble in own.get("troubles", [])),
        f"{own['encoder']}, generation {own['generation']}, up {duration(own['uptime_s'])}",
        f"{sum(own['windows'].values())} windows arrived"
        + "".join(f", {count} {name.replace('_', ' ')}" for name, count in odd.items()),
        f"{own['training_steps']} training steps" + ("" if loss is None else f", loss {loss:.3f}"),
    ]
    if (energy := own.get("energy")) and energy["steps"]:
        above = energy["above_idle_a_step"]
        told = "" if above is None else f", {above:.3g} J above idle"
        lines.append(f"{energy['joules_a_step']:.3g} J a training step{told}, by {energy['source']}")
    if adaptation := own.get("adaptation"):
        lines += adaptation_lines(adaptation)
    if left_out := own.get("out_of_range"):
        worst = max(left_out, key=lambda device: left_out[device])
        lines.append(
            f"{sum(left_out.values())} windows of {len(left_out)} devices are out of range and train nothing, "
            f"{left_out[worst]} of {worst}"
        )
    if damaged := own.get("ledger", {}).get("damaged_lines"):
        lines.append(f"damaged lines of the ledger's journals: {damaged}; as many windows may be counted twice")
    for rank in own.get("ranks", []):
        well = (
            "does not answer" if rank.get("missing") else f"{rank['windows']} windows, up {duration(rank['uptime_s'])}"
        )
        lines.append(f"rank {rank['rank']}: {well}")
    if unreadable := own["rollout"].get("unreadable_reports"):
        lines.append(f"{unreadable} reports of devices could not be read")
    if paced := own["rollout"].get("paced"):
        lines.append(paced)
    for entry in own["rollout"]["releases"][:_SHOWN_RELEASES]:
        proven = f"{entry['devices']} devices, {entry['devices_proven']} of them proven"
        if count := entry.get("devices_waiting"):
            proven += f", {count} wait for their budget"
        lines.append(f"release {entry['generation']}: {entry['status']}, {proven}")
    return lines


def adaptation_lines(told: dict[str, Any]) -> list[str]:
    """What adaptation has done since the start, and why some devices are not adapted."""
    windows = told["windows"]
    done = f"{told['sent']} sent ({size(told['bytes'])}), {told['refused']} refused, {told['withdrawn']} taken back"
    used = f"{windows['training']} windows trained, {windows['judging']} judged, {windows['dropped']} dropped"
    alike = [f"one adaptation for {', '.join(devices)}, which hear alike" for devices in told["together"]]
    waits = [f"no adaptation: {why}" for why in told["waits"]]
    return [f"adaptation by {told['method']}: {done}; {used}", *alike, *waits]


def device_row(name: str, report: dict[str, Any], arrived: int) -> list[str]:
    """A device's row. Its report is unverified, so this relies neither on types nor on harmless text."""
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
        f"{duration(report['seen_s'])} ago",
    ]


def _text(value: object) -> str:
    return printable(str("-" if value is None else value), 32)

"""Keeps a `Fleet` up to date with what devices publish."""

from __future__ import annotations

from nats.aio.msg import Msg

from runtime_edge.errors import FormatError
from runtime_edge.formats import subjects
from runtime_edge.formats.records.report import decode_report
from runtime_server.broker.hub import Hub
from runtime_server.telemetry.fleet import Fleet


async def watch_fleet(hub: Hub, fleet: Fleet) -> None:
    """Add each device's last report to the fleet, and from then on everything that arrives. Raises LinkError."""

    async def on_report(message: Msg) -> None:
        name = message.subject.rpartition(".")[2]
        try:
            fleet.report(name, decode_report(message.data, name))
        except FormatError:
            fleet.unreadable += 1

    async def on_event(message: Msg) -> None:
        fleet.event(message.subject.rpartition(".")[2], message.data)

    await hub.subscribe(subjects.bucket_subject(subjects.PRESENCE, "*"), on_report)
    await hub.subscribe(subjects.events("*"), on_event)
    for name, (report, age_s) in (await hub.last_reports()).read.items():
        if name not in fleet.devices:
            fleet.report(name, report, age_s)

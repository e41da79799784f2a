"""Traffic of devices, per hour and month, as lines of `ssc server status` and `ssc demo`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from runtime_edge.base.text import moment, printable, size
from runtime_server.releases.device_reports import DeviceTraffic, all_together, waiting_update
from streamsplit_compile.cli.printing import print_table

_WHAT = ("up", "down", "updates")
COLUMNS = ["device", *(f"{what}\n{span}" for span in ("an hour", "a month") for what in _WHAT)]

Reports = Mapping[str, Mapping[str, Any]]
"""A device's report, by the device's name."""


def totals(reports: Reports) -> list[str]:
    """Traffic of all devices together."""
    both = all_together(DeviceTraffic.of(report) for report in reports.values())
    if not both.month.seconds:
        return []
    return [f"traffic an hour: {both.hour}", f"traffic a month: {both.month}"]


def as_json(reports: Reports) -> dict[str, Any]:
    """The totals as JSON: bytes, and the seconds over which they were measured."""
    both = all_together(DeviceTraffic.of(report) for report in reports.values())
    return {
        span: {**rate.traffic._asdict(), "seconds": round(rate.seconds)}
        for span, rate in (("hour", both.hour), ("month", both.month))
    }


def waiting(reports: Reports) -> list[str]:
    """Which devices wait for update budget, for which generation, and until when."""
    found = []
    for name, report in sorted(reports.items()):
        waits = waiting_update(report)
        if waits is not None:
            when = "never fits its budget" if math.isinf(waits.until) else f"waits until {moment(waits.until)}"
            found.append(f"{printable(name, 64)}: generation {waits.generation} {when}")
    return found


def show_table(reports: Reports) -> None:
    """Print the traffic, one row for each device."""
    rows = []
    for name, report in sorted(reports.items()):
        traffic = DeviceTraffic.of(report)
        rows.append([name, *map(size, (*traffic.hour.traffic, *traffic.month.traffic))])
    print_table("Traffic of each device: bytes up, down, and of both for updates", COLUMNS, rows)

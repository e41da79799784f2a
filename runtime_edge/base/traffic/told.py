"""Traffic, times and dates for people."""

from __future__ import annotations

import datetime as dt
import math

from runtime_edge.base.traffic.traffic_log import Rate


def amount(count: float) -> str:
    """Bytes."""
    for unit in ("B", "kB", "MB"):
        if abs(count) < 999.95 or (unit == "B" and abs(count) < 999.5):
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def duration(seconds: float) -> str:
    """In the largest unit of which there are two."""
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


def moment(at: float) -> str:
    """A time since the epoch by the local clock, to the minute and never too early; `never` when it is infinite."""
    if not math.isfinite(at):
        return "never"
    whole = dt.datetime.fromtimestamp(math.ceil(at / 60) * 60).astimezone()
    return whole.strftime("%Y-%m-%d %H:%M")


def sentence(rate: Rate) -> str:
    """What passes in the time of a rate."""
    if not rate.seconds:
        return "nothing is known yet"
    up, down, updates = map(amount, rate.traffic)
    return f"{up} up, {down} down, {updates} of it updates (from {duration(rate.seconds)})"

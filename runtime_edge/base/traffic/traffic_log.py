"""The traffic of a device's interface, kept over restarts: by the hour for two days, by the day for a month."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from runtime_edge.base.text import duration, size
from runtime_edge.base.traffic.budget import DAY_S

HOUR_S, MONTH_S = 3600.0, 30 * DAY_S
_BY_HOUR_S = 2 * DAY_S


class Traffic(NamedTuple):
    """Bytes."""

    up: int = 0
    down: int = 0
    updates: int = 0
    """The part of both that bundles, tables, heads and releases took."""

    def since(self, before: Traffic) -> Traffic:
        """What has passed since an earlier total."""
        return Traffic(*(max(0, now - then) for now, then in zip(self, before, strict=True)))

    def plus(self, more: Traffic) -> Traffic:
        """The sum of both."""
        return Traffic(*(one + other for one, other in zip(self, more, strict=True)))

    def times(self, factor: float) -> Traffic:
        """Multiply by a factor."""
        return Traffic(*(round(count * factor) for count in self))


class Span(NamedTuple):
    """What passed from `start` (seconds since the epoch) until the start of the next span."""

    start: float
    traffic: Traffic


class Rate(NamedTuple):
    """Traffic over a stated time, extrapolated from what passed in another one."""

    traffic: Traffic = Traffic()
    seconds: float = 0.0
    """Length of the time it is extrapolated from; 0 if nothing is known yet."""

    def __str__(self) -> str:
        """The rate as text for people."""
        if not self.seconds:
            return "nothing is known yet"
        up, down, updates = map(size, self.traffic)
        return f"{up} up, {down} down, {updates} of it updates (from {duration(self.seconds)})"


class TrafficLog:
    """Adds up traffic; holds some 80 spans at most.

    Args:
        spans: the spans of an earlier run, oldest first.
    """

    def __init__(self, spans: Iterable[Span] = ()) -> None:
        self._spans = list(spans)

    @property
    def spans(self) -> list[Span]:
        """All spans, oldest first."""
        return list(self._spans)

    @property
    def total(self) -> Traffic:
        """The sum over all spans."""
        total = Traffic()
        for span in self._spans:
            total = total.plus(span.traffic)
        return total

    def add(self, now: float, traffic: Traffic) -> None:
        """Add traffic that has passed until `now`, seconds since the epoch."""
        # If the clock was set back, later spans count as of now.
        spans = [Span(min(span.start, now), span.traffic) for span in self._spans]
        merged: list[Span] = []
        for span in [*spans, Span(now, traffic)]:
            if now - span.start >= MONTH_S:
                continue
            if merged and _piece(merged[-1].start, now) == _piece(span.start, now):
                merged[-1] = Span(merged[-1].start, merged[-1].traffic.plus(span.traffic))
            else:
                merged.append(span)
        self._spans = merged

    def an_hour(self, now: float) -> Rate:
        """Traffic in an hour, extrapolated from this hour and the last one."""
        return self._rate(now, HOUR_S, (now // HOUR_S - 1) * HOUR_S)

    def a_month(self, now: float) -> Rate:
        """Traffic in 30 days, extrapolated from at most the last 30."""
        return self._rate(now, MONTH_S, now - MONTH_S)

    def _rate(self, now: float, seconds: float, since: float) -> Rate:
        recent = [span for span in self._spans if span.start >= since]
        if not recent or now <= recent[0].start:
            return Rate()
        return rate(TrafficLog(recent).total, now - recent[0].start, seconds)


def rate(traffic: Traffic, span_s: float, seconds: float) -> Rate:
    """The traffic expected in `seconds` if `traffic` passed in `span_s`.

    Updates are occasional: those of a shorter span count once, and are taken to be downloads.
    """
    if span_s <= 0:
        return Rate()
    if span_s >= seconds:
        return Rate(traffic.times(seconds / span_s), span_s)
    once = min(traffic.updates, traffic.down)
    steady = Traffic(traffic.up, traffic.down - once).times(seconds / span_s)
    return Rate(steady.plus(Traffic(0, once, once)), span_s)


def _piece(start: float, now: float) -> tuple[float, float]:
    """The period that is summed up: an hour within the last two days, or a day before that."""
    length = HOUR_S if now - start < _BY_HOUR_S else DAY_S
    return length, start // length

"""Devices' reports, as far as releases need them. They are unverified, so each value is checked here."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from runtime_edge.base.text import printable
from runtime_edge.base.traffic.traffic_log import Rate, Traffic

_MAX_SECONDS = 1e12


class WaitingUpdate(NamedTuple):
    """An update for which a device has no budget yet."""

    generation: int
    manifest: str
    until: float
    """Seconds since the epoch; infinite: it never fits."""


class DeviceTraffic(NamedTuple):
    """The traffic of one device."""

    hour: Rate = Rate()
    month: Rate = Rate()

    @classmethod
    def of(cls, report: Mapping[str, Any]) -> DeviceTraffic:
        """The traffic in a device's report; nothing if it reports none."""
        told = report.get("traffic")
        if not isinstance(told, list) or len(told) != 3:
            return cls()
        return cls(_rate(told[1]), _rate(told[2]))


@dataclass(frozen=True)
class LastReport:
    """A device's last report."""

    at: float
    """When it arrived, seconds since the epoch."""
    bundle: str
    proven: bool
    per_day: float
    """Bytes a day that it may spend on updates."""
    waits: WaitingUpdate | None
    traffic: DeviceTraffic
    target: str = ""
    """Empty if it names none."""

    @classmethod
    def of(cls, report: Mapping[str, Any], at: float) -> LastReport | None:
        """Parse a report; None if it does not name the running bundle."""
        bundle = report.get("bundle")
        if not isinstance(bundle, str):
            return None
        well, waits = not report.get("on_trial", True), waiting_update(report)
        target = report.get("target")
        traffic, target = DeviceTraffic.of(report), target if isinstance(target, str) else ""
        return cls(at, bundle, well, per_day(report), waits, traffic, target)

    @property
    def until(self) -> float | None:
        """When the waiting update may come, seconds since the epoch; None: never, or there is none."""
        return None if self.waits is None or math.isinf(self.waits.until) else self.waits.until


def failure(report: Mapping[str, Any], manifest: str) -> str:
    """Why a device cannot run a bundle; empty if it has not reported a failure."""
    failures = report.get("update_failures")
    for said in failures if isinstance(failures, list) else []:
        if isinstance(said, dict) and said.get("manifest") == manifest:
            return printable(f"{said.get('event')}: {said.get('reason')}")
    return ""


def per_day(report: Mapping[str, Any]) -> float:
    """Bytes a day that a device may spend on updates; infinite without a budget."""
    return min(_budget(report.get("update_budget")), _budget(report.get("budget")))


def waiting_update(report: Mapping[str, Any]) -> WaitingUpdate | None:
    """The update for which a device reports that it has no budget."""
    told = report.get("update_waits")
    if not isinstance(told, dict):
        return None
    generation, manifest, until = told.get("generation"), told.get("manifest"), told.get("until")
    if type(generation) is not int or not isinstance(manifest, str):
        return None
    if until is None:
        return WaitingUpdate(generation, printable(manifest), math.inf)
    if isinstance(until, bool) or not isinstance(until, int | float) or not 0 <= until <= _MAX_SECONDS:
        return None
    return WaitingUpdate(generation, printable(manifest), float(until))


def all_together(devices: Iterable[DeviceTraffic]) -> DeviceTraffic:
    """The sum over several devices, extrapolated from the shortest time."""
    known = list(devices)
    return DeviceTraffic(_sum(one.hour for one in known), _sum(one.month for one in known))


def _sum(rates: Iterable[Rate]) -> Rate:
    known = [rate for rate in rates if rate.seconds]
    total = Traffic()
    for rate in known:
        total = total.plus(rate.traffic)
    return Rate(total, min((rate.seconds for rate in known), default=0.0))


def _rate(told: object) -> Rate:
    if not isinstance(told, list) or len(told) != 4:
        return Rate()
    if not all(type(count) is int and 0 <= count < 1 << 62 for count in told):
        return Rate()
    return Rate(Traffic(*told[:3]), float(told[3]))


def _budget(told: object) -> float:
    if not isinstance(told, list) or len(told) != 2:
        return math.inf
    megabytes = told[0]
    if isinstance(megabytes, bool) or not isinstance(megabytes, int | float) or not 0 < megabytes < 1e12:
        return math.inf
    return megabytes * 1e6

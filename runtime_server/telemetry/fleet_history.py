"""The fleet over the last day, by minute: the cuts of its windows, and the bandwidth at which they were taken."""

from __future__ import annotations

import bisect
from collections import deque
from dataclasses import dataclass, field

import msgspec

from runtime_server.telemetry.device_view import DeviceView

MINUTE_S, MINUTES = 60.0, 1440
_MAX_CUTS = 40
_MAX_RATES = 2000
BANDS_MBPS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
"""Upper limits of the bandwidth bands; one more band lies above them."""


class Minute(msgspec.Struct, frozen=True):
    """What the fleet did in one minute."""

    at: float
    """Its beginning, seconds since the epoch."""
    devices: int
    mbps: tuple[float, float, float] | None
    """10th percentile, median and 90th percentile over the devices that reported."""
    windows: dict[str, int]
    """Windows by cut."""
    bands: dict[str, dict[int, int]]
    """The same, by cut and band number."""


@dataclass
class _Open:
    """The minute that is not over yet."""

    at: float
    rates: dict[str, float] = field(default_factory=dict)
    windows: dict[str, int] = field(default_factory=dict)
    bands: dict[str, dict[int, int]] = field(default_factory=dict)

    def closed(self) -> Minute:
        rates = sorted(self.rates.values())
        told = (_at(rates, 0.1), _at(rates, 0.5), _at(rates, 0.9)) if rates else None
        return Minute(self.at, len(self.rates), told, self.windows, self.bands)


class FleetHistory:
    """Keeps the last day; a report's windows count for the minute in which it arrived."""

    def __init__(self) -> None:
        self._past: deque[Minute] = deque(maxlen=MINUTES)
        self._open: _Open | None = None

    @property
    def minutes(self) -> list[Minute]:
        """All minutes, the oldest first; the last one is not over yet."""
        return [*self._past, *([self._open.closed()] if self._open else [])]

    def add(self, view: DeviceView, before: DeviceView | None, at: float) -> None:
        """Add a device's report, given the one before; its windows count if both are from the same run."""
        begin = at // MINUTE_S * MINUTE_S
        if self._open is None or begin > self._open.at:
            if self._open is not None:
                self._past.append(self._open.closed())
            self._open = _Open(begin)
        now = self._open
        if view.mbps is not None and (view.name in now.rates or len(now.rates) < _MAX_RATES):
            now.rates[view.name] = view.mbps
        if before is None or before.boot != view.boot:
            return
        band = bisect.bisect_left(BANDS_MBPS, view.mbps or 0.0)
        for cut, count in view.counted.items():
            grown = count - before.counted.get(cut, 0)
            if grown > 0 and (cut in now.windows or len(now.windows) < _MAX_CUTS):
                now.windows[cut] = now.windows.get(cut, 0) + grown
                bands = now.bands.setdefault(cut, {})
                bands[band] = bands.get(band, 0) + grown


def _at(rates: list[float], share: float) -> float:
    return rates[round(share * (len(rates) - 1))]

"""State variables of a splitter table besides load and link: the processor's temperature and the battery's charge.

surroundings = Surroundings()
splitter.choose(..., extra=surroundings.now())
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path

import psutil

from runtime_edge.system import SYSFS, temperature_c

PERIOD_S = 5.0
"""Heat and charge change slowly, and reading a sensor takes longer than choosing a cut."""


def measured(sysfs: Path = SYSFS) -> dict[str, float]:
    """`temperature_c` in degrees Celsius and `battery` in [0, 1], each only if it can be read."""
    found = {"temperature_c": temperature_c(sysfs), "battery": _battery()}
    return {name: value for name, value in found.items() if value is not None}


class Surroundings:
    """The measurements, renewed every `PERIOD_S`. If a sensor stops answering, its last value is kept."""

    def __init__(
        self, measure: Callable[[], Mapping[str, float]] = measured, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._measure, self._clock = measure, clock
        self._due = clock()
        self._known: dict[str, float] = {}

    def now(self) -> Mapping[str, float]:
        """State variables by name; see `measured`."""
        if (at := self._clock()) >= self._due:
            self._known.update(self._measure())
            self._due = at + PERIOD_S
        return self._known


def _battery() -> float | None:
    """Charge in [0, 1]; None without a battery, or if the system does not report it."""
    sensors = getattr(psutil, "sensors_battery", None)
    try:
        charge = sensors() if sensors is not None else None
    except (OSError, RuntimeError, ValueError):  # psutil passes on what a broken driver answers
        return None
    return None if charge is None else min(max(charge.percent / 100.0, 0.0), 1.0)

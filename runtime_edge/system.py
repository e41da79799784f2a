"""The machine: CPU load, memory, temperature, throttling."""

from __future__ import annotations

import contextlib
import functools
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

SYSFS = Path("/sys")
_THROTTLED_NOW = 0b1111  # under-voltage, frequency capped, throttled, soft temperature limit


class CpuMonitor:
    """System-wide CPU load, from the kernel's own counters. Never blocks, starts no thread.

    Call `load` as often as you like, from any thread: the counters are read at most once every `period_s`, and the
    answer is the mean over the time between the last two readings. All processes count, including this one; a processor
    that waits for a disk counts as idle.
    """

    def __init__(self, period_s: float = 0.1, now: Callable[[], float] = time.monotonic) -> None:
        self._period_s = period_s
        self._now = now
        self._read_at = now()
        self._busy, self._total = _cpu_times()
        self._load = 0.0
        self._lock = threading.Lock()

    def load(self) -> float:
        """Share of the processors' time in use, in [0, 1]; 0 until the first period is over."""
        with self._lock:
            now = self._now()
            if now - self._read_at >= self._period_s:
                busy, total = _cpu_times()
                if total > self._total:
                    self._load = min(1.0, max(0.0, (busy - self._busy) / (total - self._total)))
                self._read_at, self._busy, self._total = now, busy, total
            return self._load


@dataclass(frozen=True, slots=True)
class Health:
    """The state of the device at one moment.

    Attributes:
        rss_mb: resident memory of this process, MB (1e6 bytes).
        temperature_c: temperature of the hottest processor sensor, degrees Celsius; None if there is none.
        throttled: whether a Raspberry Pi is slowed down now by heat or low voltage; None elsewhere.
    """

    rss_mb: float
    temperature_c: float | None
    throttled: bool | None


def health(sysfs: Path = SYSFS) -> Health:
    """Read this process's memory and the device's temperature and throttling."""
    return Health(rss_mb(), temperature_c(sysfs), throttled(sysfs))


def rss_mb() -> float:
    """Resident memory of this process, MB (1e6 bytes)."""
    return float(psutil.Process().memory_info().rss) / 1e6


def temperature_c(sysfs: Path = SYSFS) -> float | None:
    """Temperature of the kernel's hottest thermal zone, degrees Celsius; None if none gives a plausible value."""
    readings = (_read_number(path, 10) for path in sysfs.glob("class/thermal/thermal_zone*/temp"))
    plausible = [number / 1e3 for number in readings if number is not None and -40e3 < number < 150e3]
    return max(plausible, default=None)


def throttled(sysfs: Path = SYSFS) -> bool | None:
    """Whether a Raspberry Pi's firmware reports under-voltage, capped frequency or heat right now."""
    for path in sysfs.glob("devices/platform/soc*/*firmware/get_throttled"):
        if (flags := _read_number(path, 16)) is not None:
            return bool(flags & _THROTTLED_NOW)
    return None


def _read_number(path: Path, base: int) -> int | None:
    try:
        return int(path.read_text(encoding="ascii"), base)
    except (OSError, ValueError):  # a sensor that is switched off answers with an error
        return None


def _cpu_times() -> tuple[float, float]:
    """(busy, total) time of all processors since boot, in an arbitrary unit."""
    stat = _kernel_counters()
    if stat is None:
        times = psutil.cpu_times()
        return sum(times) - times.idle, sum(times)
    # user nice system idle iowait irq softirq steal; a guest's time is already included in user and nice.
    ticks = list(map(int, os.pread(stat, 256, 0).split(None, 9)[1:9]))
    total = sum(ticks)
    return total - ticks[3] - ticks[4], total


@functools.cache
def _kernel_counters() -> int | None:
    """Descriptor of Linux's counters, kept open to the process's end: psutil opens and reads the file each time."""
    with contextlib.suppress(OSError):
        return os.open("/proc/stat", os.O_RDONLY)
    return None

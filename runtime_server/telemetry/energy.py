"""Sources of energy figures. Every source has a name and is checked before it is used.

rapl      counters of the processor packages and their memory: everything on the machine except its power supply
nvml      counters of the GPUs alone
FILE.csv  the log of a meter between supply and machine: lines `time_s,watts`, seconds since the epoch
TARGET    CPU seconds of this process times the watts of a target (`rpi4`, or a file): an estimate

    source = energy_source("rapl")
    before = source.joules()
"""

from __future__ import annotations

import ctypes
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from runtime_edge.errors import UsageError
from runtime_edge.measure.rapl import POWERCAP, Load, Rapl, burn, check_it_counts
from runtime_server.telemetry.meter_log import MeterLog
from streamsplit_compile.cost.targets import Target, load_target

AUTO, RAPL, NVML, NONE = "auto", "rapl", "nvml", "none"
_LOG = logging.getLogger(__name__)


class EnergySource(Protocol):
    """A count of joules that only grows."""

    name: str
    """What is counted, and how; shown beside every figure."""
    idle_w: float | None
    """The idle power that is included, W; None if unknown."""

    def joules(self) -> float:
        """Energy used since the source was opened, including idle power. Raises SscError."""
        ...


def energy_source(
    choice: str, idle_w: float | None = None, root: Path = POWERCAP, load: Load = burn
) -> EnergySource | None:
    """The source that `--meter` names; None for "none", and for "auto" without RAPL, which is then logged.

    `idle_w` is the machine's power at rest; a target's file has its own. Raises UsageError with the reason for a source
    that does not exist or does not count.
    """
    if choice == NONE:
        return None
    if choice == AUTO:
        try:
            return Rapl(idle_w, root, load)
        except UsageError as exc:
            _LOG.info("the energy of training is not counted: %s", exc)
            return None
    if choice == RAPL:
        return Rapl(idle_w, root, load)
    if choice == NVML:
        return Nvml(idle_w, load)
    if choice.endswith(".csv"):
        return MeterLog(Path(choice), idle_w)
    if idle_w is not None:
        raise UsageError(f"--idle-watts: {choice} has its own; leave the option out")
    return CpuSeconds(load_target(choice))


class Nvml:
    """NVIDIA's management library, which comes with the driver. GPUs from Volta on have the counter.

    Raises:
        UsageError: there is no such library or GPU, or its counter is missing or stands still.
    """

    def __init__(self, idle_w: float | None = None, load: Load = burn, library: Any = None) -> None:
        self.idle_w = idle_w
        try:
            self._library = library or ctypes.CDLL("libnvidia-ml.so.1")
        except OSError:
            raise UsageError("--meter nvml: libnvidia-ml.so.1 is not there; install the driver of the GPU") from None
        self._call("nvmlInit_v2")
        count = ctypes.c_uint()
        self._call("nvmlDeviceGetCount_v2", ctypes.pointer(count))
        self._devices = [self._device(place) for place in range(count.value)]
        self._first = self._millijoules()
        self.name = f"NVML of {count.value} GPUs"
        check_it_counts(self.joules, "--meter nvml", load)

    def joules(self) -> float:
        """Energy of all GPUs."""
        return (self._millijoules() - self._first) / 1e3

    def _device(self, place: int) -> ctypes.c_void_p:
        handle = ctypes.c_void_p()
        self._call("nvmlDeviceGetHandleByIndex_v2", ctypes.c_uint(place), ctypes.pointer(handle))
        return handle

    def _millijoules(self) -> int:
        total, found = 0, ctypes.c_ulonglong()
        for device in self._devices:
            self._call("nvmlDeviceGetTotalEnergyConsumption", device, ctypes.pointer(found))
            total += found.value
        return total

    def _call(self, name: str, *arguments: Any) -> None:
        if code := getattr(self._library, name)(*arguments):
            raise UsageError(f"--meter nvml: {name} failed with code {code}; choose another source")


class CpuSeconds:
    """CPU seconds of the whole process, times what one core of the target draws above its idle power: an estimate."""

    def __init__(
        self,
        target: Target,
        cpu: Callable[[], float] = time.process_time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        power = target.power
        self.idle_w: float | None = power.idle_w.value
        self._idle_w, self._core_w = power.idle_w.value, (power.active_w.value - power.idle_w.value) / target.threads
        self._cpu, self._clock = cpu, clock
        self._began = cpu(), clock()
        self.name = (
            f"CPU seconds of the process times {self._core_w:g} W a core, and {self._idle_w:g} W idle, of {target.name}"
        )

    def joules(self) -> float:
        """Energy of the CPU seconds, plus the idle power over the elapsed time."""
        cpu_s, seconds = self._cpu() - self._began[0], self._clock() - self._began[1]
        return cpu_s * self._core_w + seconds * self._idle_w

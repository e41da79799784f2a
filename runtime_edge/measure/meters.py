"""Energy meters of this board that need no extra hardware. Each says what it counts.

rapl           the processor's own counters (x86)
ina            a sensor of Texas Instruments on the board's supply, as on a Jetson: Linux's hwmon
pmic           a Raspberry Pi 5's power chip: its rails, without what hangs on its 5 V
powermetrics   macOS's estimate for CPU, GPU and neural engine; needs root

Power sensors are read at most ten times a second, with interpolation between readings.
"""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol

from runtime_edge.errors import UsageError
from runtime_edge.measure.rapl import Rapl

AUTO, NONE = "auto", "none"
HWMON = Path("/sys/class/hwmon")
_PERIOD_S = 0.1
_SLOW_PERIOD_S = 0.25
"""Sampling period of meters that start a process for each reading."""
_TIMEOUT_S = 5.0
_SUPPLY = ("VDD_IN", "POM_5V_IN", "VIN", "VBUS")
"""Names of the rail that supplies everything else on a board."""
_POWERMETRICS = ("powermetrics", "--samplers", "cpu_power", "--sample-rate", "200")
_COMBINED = re.compile(rb"Combined Power[^:]*:\s*(\d+) mW")
_PMIC_LINE = re.compile(r"^\s*(\w+)_([AV]) (?:current|volt)\(\d+\)=([\d.]+)[AV]\s*$", re.MULTILINE)

Watts = Callable[[], float]


class Meter(Protocol):
    """A count of joules that only grows."""

    name: str
    """What is counted, and how."""

    def joules(self) -> float:
        """Energy used since the meter was opened, J. Raises UsageError if it cannot be read any more."""
        ...


class Integrated:
    """Integrates successive power readings to joules, by trapezoids."""

    def __init__(self, name: str, watts: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.name = name
        self._clock = clock
        self._lock = threading.Lock()
        self._at, self._watts, self._total = clock(), watts, 0.0
        self._failed = ""

    def reading(self, watts: float) -> None:
        """Take a reading of the power now, W."""
        with self._lock:
            now = self._clock()
            self._total += (watts + self._watts) / 2 * (now - self._at)
            self._at, self._watts = now, watts

    def failed(self, why: str) -> None:
        """There will be no more readings."""
        self._failed = why

    def joules(self) -> float:
        """Energy up to now, J; after the last reading its power is taken to continue."""
        if self._failed:
            raise UsageError(f"--meter: {self.name}: {self._failed}")
        with self._lock:
            return self._total + self._watts * (self._clock() - self._at)


@contextmanager
def open_meter(choice: str = AUTO) -> Iterator[tuple[Meter | None, str]]:
    """The named meter, or with `auto` the first available one; and the reason if there is none.

    Raises UsageError if the named meter is missing.
    """
    kinds = {"rapl": _rapl, "ina": _ina, "pmic": _pmic, "powermetrics": _powermetrics}
    if choice == NONE:
        yield None, "none was asked for"
        return
    if choice != AUTO and choice not in kinds:
        raise UsageError(f"--meter {choice}: there are {', '.join((AUTO, NONE, *kinds))}")
    reasons = []
    for name in kinds if choice == AUTO else [choice]:
        opened = kinds[name]()
        try:
            meter = opened.__enter__()
        except UsageError as exc:
            if choice != AUTO:
                raise
            reasons.append(str(exc).removeprefix("--meter "))
            continue
        try:
            yield meter, ""
        finally:
            opened.__exit__(None, None, None)
        return
    yield None, "; ".join(reasons)


@contextmanager
def _rapl() -> Iterator[Meter]:
    yield Rapl()


@contextmanager
def _ina() -> Iterator[Meter]:
    name, watts = ina_sensor()
    with _sampled(name, watts, _PERIOD_S) as meter:
        yield meter


@contextmanager
def _pmic() -> Iterator[Meter]:
    if shutil.which("vcgencmd") is None:
        raise UsageError("--meter pmic: vcgencmd is not there; only a Raspberry Pi 5 has this")

    def watts() -> float:
        done = subprocess.run(["vcgencmd", "pmic_read_adc"], capture_output=True, text=True, timeout=_TIMEOUT_S)
        return pmic_watts(done.stdout)

    with _sampled("rails of the board's power chip, without what hangs on its 5 V", watts, _SLOW_PERIOD_S) as meter:
        yield meter


@contextmanager
def _powermetrics() -> Iterator[Meter]:
    if shutil.which("powermetrics") is None:
        raise UsageError("--meter powermetrics: not there; it comes with macOS")
    if os.geteuid() != 0:
        raise UsageError("--meter powermetrics: needs root; run this command with sudo")
    child = subprocess.Popen(_POWERMETRICS, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert child.stdout is not None
    try:
        readings = combined_watts(child.stdout)
        first = next(readings, None)
        if first is None:
            raise UsageError("--meter powermetrics: it does not report the processor's power here")
        meter = Integrated("powermetrics' estimate for CPU, GPU and neural engine", first)

        def follow() -> None:
            for watts in readings:
                meter.reading(watts)
            meter.failed("powermetrics has ended")

        threading.Thread(target=follow, daemon=True).start()
        yield meter
    finally:
        child.terminate()
        child.wait()


@contextmanager
def _sampled(name: str, watts: Watts, period_s: float) -> Iterator[Meter]:
    """A meter that is read by a thread of its own, once every `period_s`."""
    meter, ended = Integrated(name, watts()), threading.Event()

    def follow() -> None:
        while not ended.wait(period_s):
            try:
                meter.reading(watts())
            except (UsageError, OSError, subprocess.SubprocessError) as exc:
                meter.failed(str(exc))
                return

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield meter
    finally:
        ended.set()
        thread.join()


def combined_watts(lines: Iterator[bytes]) -> Iterator[float]:
    """The power in each reading that powermetrics prints, W."""
    for line in lines:
        if found := _COMBINED.search(line):
            yield int(found[1]) / 1e3


def pmic_watts(text: str) -> float:
    """The power of all rails in the output of `vcgencmd pmic_read_adc`, W. Raises UsageError if there are none."""
    volts: dict[str, float] = {}
    amperes: dict[str, float] = {}
    for rail, unit, number in _PMIC_LINE.findall(text):
        with suppress(ValueError):
            (volts if unit == "V" else amperes)[rail] = float(number)
    rails = volts.keys() & amperes.keys()
    if not rails:
        raise UsageError("--meter pmic: vcgencmd pmic_read_adc says no rail's current and voltage")
    return sum(volts[rail] * amperes[rail] for rail in rails)


def ina_sensor(root: Path = HWMON) -> tuple[str, Watts]:
    """The name of the sensor on the board's supply, and a function that reads it.

    Of several channels, the one named after the supply is used; if none is, it is unknown which rails are on which
    channel. Raises UsageError.
    """
    found: dict[str, tuple[str, Watts]] = {}
    for folder in sorted(root.glob("hwmon*")):
        chip = _word(folder / "name")
        if re.fullmatch(r"ina\d\w*", chip):
            for channel, watts in _channels(folder):
                found[f"{folder.name}/{channel}"] = (f"{chip} {channel}", watts)
    supplies = [one for key, one in found.items() if key.rpartition("/")[2].upper().startswith(_SUPPLY)]
    chosen = supplies or list(found.values())
    if not chosen:
        raise UsageError(f"--meter ina: no INA sensor below {root}")
    if len(chosen) > 1:
        raise UsageError(
            f"--meter ina: {', '.join(name for name, _ in chosen)}: it is unknown which of them is the supply"
        )
    chosen[0][1]()
    return chosen[0]


def _channels(folder: Path) -> Iterator[tuple[str, Watts]]:
    for path in sorted(folder.glob("power*_input")):
        number = path.name.removeprefix("power").removesuffix("_input")
        yield _word(folder / f"power{number}_label") or f"power{number}", functools.partial(_microwatts, path)
    if any(folder.glob("power*_input")):
        return
    for current in sorted(folder.glob("curr*_input")):
        number = current.name.removeprefix("curr").removesuffix("_input")
        voltage = folder / f"in{number}_input"
        if voltage.exists():
            label = _word(folder / f"in{number}_label") or f"channel {number}"
            yield label, functools.partial(_product, voltage, current)


def _microwatts(path: Path) -> float:
    return _number(path) / 1e6


def _product(millivolts: Path, milliamperes: Path) -> float:
    return _number(millivolts) * _number(milliamperes) / 1e6


def _word(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _number(path: Path) -> float:
    text = _word(path)
    if not re.fullmatch(r"-?\d{1,12}", text):
        raise UsageError(f"--meter ina: {path} says {text[:40]!r}, a number was expected")
    return max(0.0, float(text))

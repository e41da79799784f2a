"""Joules from the processor's own counters: Linux's `powercap`, on x86 (RAPL)."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from runtime_edge.errors import UsageError

POWERCAP = Path("/sys/class/powercap")
_LOAD_S = 0.25
"""How long to load a core: RAPL counts every millisecond, NVML ten times a second."""

Load = Callable[[], None]


def burn(clock: Callable[[], float] = time.monotonic) -> None:
    """Keep one core busy for a moment."""
    until = clock() + _LOAD_S
    while clock() < until:
        hashlib.sha256(bytes(1 << 16)).digest()


@dataclass
class _Zone:
    """A counter that starts again from 0 beyond `most`, in J."""

    path: Path
    name: str
    most: float
    last: float = 0.0
    total: float = 0.0

    def advance(self) -> float:
        """Energy counted since the first call, J. One wrap-around between two calls is noticed, two are not."""
        now = _counted(self.path / "energy_uj")
        self.total += now - self.last + (self.most if now < self.last else 0.0)
        self.last = now
        return self.total


class Rapl:
    """The kernel's `powercap`: package domains, and memory domains outside them; a package already includes its parts.

    Raises:
        UsageError: there are no counters, this user may not read them, or they stand still while a core works, as on
            virtual machines.
    """

    def __init__(self, idle_w: float | None = None, root: Path = POWERCAP, load: Load = burn) -> None:
        self.idle_w = idle_w
        self._zones = [zone for path in sorted(root.glob("intel-rapl:*")) if (zone := _zone(path))]
        if not self._zones:
            raise UsageError(f"--meter rapl: {root} has no package of intel-rapl; choose another source")
        self.name = f"RAPL of {', '.join(zone.name for zone in self._zones)}"
        for zone in self._zones:
            zone.last = _counted(zone.path / "energy_uj")
        check_it_counts(self.joules, f"--meter rapl: {root}", load)

    def joules(self) -> float:
        """Energy of all packages and their memory, J."""
        return sum(zone.advance() for zone in self._zones)


def check_it_counts(joules: Callable[[], float], where: str, load: Load) -> None:
    """Raise UsageError if a counter does not move while a core works."""
    before = joules()
    load()
    if joules() <= before:
        raise UsageError(f"{where}: the counter does not move while a core works; choose another source")


def _zone(path: Path) -> _Zone | None:
    """A domain that is counted: a package, or memory outside any package.

    A platform's own domain ("psys") contains the packages.
    """
    name = _text(path / "name")
    if not name.startswith("package") and name != "dram":
        return None
    return _Zone(path, name, _counted(path / "max_energy_range_uj"))


def _counted(path: Path) -> float:
    """The value of a file that counts microjoules, J."""
    text = _text(path)
    if not text.isdecimal():
        raise UsageError(f"--meter rapl: {path} says {text[:40]!r}, a number of microjoules was expected")
    return int(text) / 1e6


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except PermissionError:
        raise UsageError(
            f"--meter rapl: this user may not read {path}; run `sudo chmod a+r {path}`, or choose another source"
        ) from None
    except OSError as exc:
        raise UsageError(f"--meter rapl: {path}: {exc.strerror}; choose another source") from None

"""The log of a power meter between supply and machine, read while it is being written."""

from __future__ import annotations

import csv
import time
from collections.abc import Callable
from pathlib import Path

from runtime_edge.errors import FormatError

STALE_S = 10.0
"""A reading applies until the next one, but no longer than this."""
_MOST = 1e12
"""Upper limit of seconds or watts; anything larger, or not a number, is not a reading."""


class MeterLog:
    """CSV lines `time_s,watts` in order of time, seconds since the epoch; other columns are ignored.

    Raises:
        FormatError: there is no such file, no such columns, or no reading in the last ten seconds.
    """

    def __init__(self, path: Path, idle_w: float | None = None, clock: Callable[[], float] = time.time) -> None:
        self.idle_w, self.name = idle_w, f"meter {path}"
        self._path, self._clock = path, clock
        self._place, self._columns = 0, [-1, -1]
        self._joules = 0.0
        self._counted_to = clock()
        self._watts, self._read_at = 0.0, float("-inf")
        self._read()
        self.joules()

    def joules(self) -> float:
        """Energy that the machine has used since this was opened: each reading applies until the next one."""
        self._read()
        now = self._clock()
        if now - self._read_at > STALE_S:
            raise FormatError(f"{self._path}: no reading of the last {STALE_S:g} s; is the meter still logged?")
        self._count_to(now)
        return self._joules

    def _read(self) -> None:
        """Read the complete lines that are new."""
        try:
            with self._path.open(encoding="utf-8", newline="") as file:
                file.seek(self._place)
                text = file.read()
        except (OSError, UnicodeDecodeError) as exc:
            raise FormatError(f"{self._path}: cannot be read ({exc}); give the log of a meter") from None
        whole = text[: text.rfind("\n") + 1]
        self._place += len(whole.encode())
        try:
            for row in csv.reader(whole.splitlines()):
                self._take(row)
        except csv.Error as exc:
            raise FormatError(f"{self._path}: expected CSV with time_s and watts ({exc})") from None

    def _take(self, row: list[str]) -> None:
        try:
            if min(self._columns) < 0:
                self._columns = [row.index("time_s"), row.index("watts")]
                return
            at, watts = (_finite(row[place]) for place in self._columns)
        except (ValueError, IndexError) as exc:
            raise FormatError(f"{self._path}: expected CSV with time_s and watts ({exc})") from None
        self._count_to(at)
        self._watts, self._read_at = watts, at

    def _count_to(self, now: float) -> None:
        if now > self._counted_to:
            self._joules += self._watts * (now - self._counted_to)
            self._counted_to = now


def _finite(text: str) -> float:
    value = float(text)
    if not abs(value) <= _MOST:
        raise ValueError(f"{text!r} is not a number of seconds or watts")
    return value

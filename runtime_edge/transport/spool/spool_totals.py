"""The spool's counters, and the note beside its file that preserves them if the file is lost or damaged."""

from __future__ import annotations

import contextlib
import os
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

_LONGEST_NOTE = 256


class Totals(NamedTuple):
    """Frames put, acknowledged and dropped since the spool was created, and what it holds now."""

    put: int = 0
    acked: int = 0
    dropped: int = 0
    bytes: int = 0
    newest: int = 0
    """The place of the newest frame in the spool, 0 if it is empty. `put` numbers the places."""

    @property
    def frames(self) -> int:
        """Number of frames in the spool."""
        return self.put - self.acked - self.dropped

    def older_than(self, other: Totals) -> bool:
        """Whether these counters of a spool are from before `other`."""
        return self.put < other.put or self.acked < other.acked or self.dropped < other.dropped


@dataclass(frozen=True, slots=True)
class Found:
    """Counts of what the table of frames really holds."""

    frames: int
    bytes: int
    newest: int


def reconcile(stored: Totals | None, noted: Totals | None, found: Found) -> tuple[Totals, int]:
    """Counters that agree with the frames that were found, and how many frames are missing.

    `stored` are the counters in the database, None if they cannot be read; `noted` those remembered outside of it. A
    database that is as new as the note and agrees with itself is right. An older one has lost the frames put since
    then that were still there, and may contain frames again that had been acknowledged.
    """
    agrees = stored is not None and (stored.frames, stored.bytes) == (found.frames, found.bytes)
    if stored is not None and agrees and (noted is None or not stored.older_than(noted)):
        return stored._replace(newest=found.newest), 0
    missing = 0
    known = noted or stored or Totals()
    if noted is not None:
        missing = noted.frames - found.frames
        if stored is not None and agrees:
            missing = max(missing, min(noted.frames, noted.newest - stored.put))
    elif stored is not None:
        # Nothing vouches for the counters themselves: no more frames can be missing than places were assigned.
        missing = min(stored.frames, found.newest) - found.frames
    missing = max(0, missing)
    put = max(known.put, found.newest, known.dropped + missing + found.frames)
    dropped = known.dropped + missing
    return Totals(put, put - dropped - found.frames, dropped, found.bytes, found.newest), missing


class SpoolNote:
    """One line in a file of its own: rewritten in place, never synced, and ignored if it is damaged."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: int | None = None

    def read(self) -> Totals | None:
        """The counters last written; None if there is no note or it is damaged."""
        try:
            with self._path.open("rb") as file:
                line = file.read(_LONGEST_NOTE)
            *counters, check = line.split()
            if len(counters) != 5 or int(check, 16) != zlib.crc32(b" ".join(counters)):
                return None
            return Totals(*map(int, counters))
        except (OSError, ValueError):
            return None

    def write(self, totals: Totals) -> None:
        """Write the counters; if the disk refuses, the earlier ones stay."""
        line = b"%020d %020d %020d %020d %020d" % (
            totals.put,
            totals.acked,
            totals.dropped,
            totals.bytes,
            totals.newest,
        )
        try:
            if self._file is None:
                self._file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
            os.pwrite(self._file, b"%b %08x\n" % (line, zlib.crc32(line)), 0)
        except OSError:
            self.close()

    def close(self) -> None:
        """Release the file."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                os.close(self._file)
            self._file = None

"""The spool's open database: counts missing frames, and replaces a damaged file with what can still be read."""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
from pathlib import Path

from runtime_edge.transport.spool import spool_file
from runtime_edge.transport.spool.spool_file import Damage
from runtime_edge.transport.spool.spool_totals import SpoolNote, Totals, reconcile

_LOG = logging.getLogger(__name__)
_UPDATE_TOTALS = "UPDATE totals SET put = ?, acked = ?, dropped = ?, bytes = ? WHERE put = ?"
_CHECK_EVERY = 16
_NOTE_EVERY = 16


class SpoolDatabase:
    """A connection to the spool's file and its counters, opened on first use.

    Args:
        path: the file; its directory is created. The note beside it is `<path>.note`.
        synchronous: SQLite's setting of that name.
        row_bytes: what a frame counts beyond its payload.
    """

    def __init__(self, path: Path, synchronous: str, row_bytes: int) -> None:
        self._path, self._synchronous, self._row_bytes = path, synchronous, row_bytes
        self._rebuilt = path.with_name(path.name + ".new")
        self._note = SpoolNote(path.with_name(path.name + ".note"))
        self._connection: sqlite3.Connection | None = None
        self._totals: Totals | None = None
        self._noted = Totals()
        self._files: tuple[int, int] | None = None
        self._until_check = 0
        self.recoveries = 0
        """Damaged databases rebuilt since this object was created."""
        self.damaged = 0
        """Frames found to be missing, or changed and dropped, since then."""

    @property
    def connection(self) -> sqlite3.Connection:
        """The connection. Raises sqlite3.Error, OSError or SpoolError."""
        return self._connection or self._open()[0]

    @property
    def totals(self) -> Totals:
        """The counters of the last transaction. Raises as `connection` does."""
        if self._connection is None or self._totals is None:
            return self._open()[1]
        return self._totals

    def check_place(self) -> None:
        """Raise Damage if the file or its log is no longer where it was opened; checked now and then."""
        self._until_check -= 1
        if self._until_check < 0:
            self._until_check = _CHECK_EVERY
            if self._identity() != self._files:
                raise Damage("its file was moved or deleted")

    def commit(self, db: sqlite3.Connection, before: Totals, after: Totals, damaged: int) -> None:
        """Commit a transaction that takes the counters from `before` to `after` and drops `damaged` damaged frames."""
        if db.execute(_UPDATE_TOTALS, (*after[:4], before.put)).rowcount != 1:
            raise Damage("its counters are not those written last")
        db.execute("COMMIT")
        self._totals = after
        if damaged:
            self.damaged += damaged
            _LOG.error("%s: %d damaged frames dropped", self._path, damaged)
        if after.frames != self._noted.frames or after.put >= self._noted.put + _NOTE_EVERY:
            self._write_note()

    def close(self) -> None:
        """Write everything out and release the files."""
        self._disconnect()
        self._write_note()
        self._note.close()

    def rebuild(self, reason: Exception) -> None:
        """Make a new database from what can be read, and keep the (latest) damaged one for inspection.

        Raises:
            sqlite3.Error, OSError: the disk refuses; the damaged file is left in place.
        """
        aside = self._path.with_name(self._path.name + ".corrupt")
        known = self._totals or self._note.read()
        source = self._connection if self._identity() != self._files else None
        if source is None:
            self._disconnect()
        aside.unlink(missing_ok=True)
        spool_file.salvage(self._path, source, self._rebuilt, known.put if known is not None else None)
        self._disconnect()
        with contextlib.suppress(FileNotFoundError):
            os.replace(self._path, aside)
        for suffix in ("-wal", "-shm"):
            self._path.with_name(self._path.name + suffix).unlink(missing_ok=True)
        os.replace(self._rebuilt, self._path)
        self.recoveries += 1
        before = self.damaged
        totals = self._open()[1]
        _LOG.error(
            "%s: damaged (%s), moved to %s; a new one holds %d frames, %d are lost",
            *(self._path, " ".join(str(reason).split()), aside, totals.frames, self.damaged - before),
        )

    def _open(self) -> tuple[sqlite3.Connection, Totals]:
        """Open or create the database, and count what is missing in it."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        if self._rebuilt.exists() and not self._path.exists():
            os.replace(self._rebuilt, self._path)  # a process died between two renames
        noted = self._totals or self._note.read()
        db = spool_file.open_database(self._path)
        try:
            db.execute(f"PRAGMA synchronous = {self._synchronous}")
            found, stored = spool_file.count_frames(db, self._row_bytes), spool_file.stored_totals(db)
            if found.newest > max(totals.put for totals in (stored, noted, Totals()) if totals is not None):
                raise Damage(f"a frame has the place {found.newest}")
            totals, missing = reconcile(stored, noted, found)
            if stored is None or stored[:4] != totals[:4]:
                spool_file.replace_totals(db, totals)
        except BaseException:
            db.close()
            raise
        self._connection, self._totals, self._files = db, totals, self._identity()
        self.damaged += missing
        if missing:
            _LOG.error("%s: %d of its frames are missing", self._path, missing)
        self._write_note()
        return db, totals

    def _write_note(self) -> None:
        if self._totals is not None and self._totals != self._noted:
            self._note.write(self._totals)
            self._noted = self._totals

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _identity(self) -> tuple[int, int] | None:
        """Identity of the files at the paths of the database and its log; None if one of them is missing."""
        try:
            return os.stat(self._path).st_ino, os.stat(f"{self._path}-wal").st_ino
        except FileNotFoundError:
            return None

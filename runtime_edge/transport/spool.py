"""Frames on disk between capture and the server's acknowledgement.

    spool = Spool(Path("spool.db"), max_bytes=64 << 20)
    spool.put("device-boot-17", 17, frame, uncertainty=0.8)
    for item in spool.oldest(16):
        send(item.payload)
    spool.ack([item.message_id])

What survives: every `put` that returned survives the death of the process, SIGKILL included. A power cut
never damages the spool, but may take the last half minute of puts or so (until Linux writes them out by
itself). With `power_safe=True` every put and ack waits for the disk: 5 to 50 ms on an SD card, and wear.

| trouble | what the device loop sees |
|---|---|
| the spool is full | the least informative frame goes: lowest uncertainty, then oldest; `dropped` counts it |
| the database is damaged | moved to `<path>.corrupt`, an empty one starts; logged, counted in `recoveries` |
| the disk is full or fails | SpoolError; what is stored stays, the next call tries again |
| ... while acking | no error: the frames are hidden, and deleted by the next call that works |

The device catches SpoolError, counts the window and continues.
"""

from __future__ import annotations

import builtins
import logging
import math
import os
import sqlite3
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from runtime_edge.errors import SpoolError

ROW_BYTES = 128
"""What a frame counts beyond its payload: its row and its place in two indices."""

_LOG = logging.getLogger(__name__)
_APPLICATION_ID = 0x53534353
_SCHEMA_VERSION = 1
_SCHEMA = """
CREATE TABLE frames (
    place INTEGER PRIMARY KEY, message_id TEXT NOT NULL UNIQUE, window_index INTEGER NOT NULL,
    uncertainty REAL NOT NULL, payload BLOB NOT NULL);
CREATE INDEX least_informative ON frames (uncertainty, place);
CREATE TABLE totals (put INTEGER, acked INTEGER, dropped INTEGER, bytes INTEGER);
INSERT INTO totals VALUES (0, 0, 0, 0);
"""
_INSERT = """
INSERT INTO frames (message_id, window_index, uncertainty, payload) VALUES (?, ?, ?, ?)
ON CONFLICT (message_id) DO NOTHING
"""
_UPDATE_TOTALS = "UPDATE totals SET put = put + ?, acked = acked + ?, dropped = dropped + ?, bytes = bytes + ?"
_REMEMBERED = 64
_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class SpooledFrame:
    """One stored frame: its message id, window index, payload and normalised uncertainty."""

    message_id: str
    index: int
    payload: bytes
    uncertainty: float


@dataclass(frozen=True, slots=True)
class SpoolCounters:
    """Frames since the spool was made, restarts included; `put - acked - dropped` are in it now."""

    put: int
    acked: int
    dropped: int


@dataclass(slots=True)
class _Change:
    """What one transaction does to the totals."""

    put: int = 0
    acked: int = 0
    dropped: int = 0
    bytes: int = 0


@dataclass(frozen=True, slots=True)
class SpoolState:
    """What waits on the disk."""

    frames: int
    bytes: int
    limit_bytes: int
    recoveries: int
    """Damaged databases replaced by empty ones in this run."""


class Spool:
    """Bounded queue on disk (SQLite, write-ahead log).

    Any method may be called from any thread; calls wait for each other. One process writes at a time, others
    may read the file. The file's size on disk stays below about 1.5 times `max_bytes` plus 8 MiB.

    Args:
        path: the database file; its directory is made.
        max_bytes: bound on the payloads plus `ROW_BYTES` for each frame.
        power_safe: see the module's text.

    Raises:
        SpoolError: the file belongs to another program or a newer version, or the disk refuses.
    """

    def __init__(self, path: Path, max_bytes: int, power_safe: bool = False) -> None:
        if max_bytes <= ROW_BYTES:
            raise SpoolError(f"{path}: max_bytes is {max_bytes}, must be more than {ROW_BYTES}")
        self._path = path
        self._max_bytes = max_bytes
        self._synchronous = "FULL" if power_safe else "NORMAL"
        self._lock = threading.RLock()
        self._acked: set[str] = set()
        self._places: dict[str, tuple[int, int]] = {}
        self._change = _Change()
        self._stored_bytes: int | None = None
        self.recoveries = 0
        """Damaged databases moved aside since this object was made."""
        self._closed = False
        self._connection: sqlite3.Connection | None = None
        self._totals()

    def put(self, message_id: str, index: int, payload: builtins.bytes, uncertainty: float) -> list[str]:
        """Store one frame; it is durable when this returns (see the module's text).

        A full spool drops its least informative frames, which may be this one; returns their ids. An id that is
        already stored changes nothing. An uncertainty that is not a finite number counts as 0.

        Raises:
            SpoolError: the frame alone is larger than the spool, or the disk is full or fails.
        """
        cost = len(payload) + ROW_BYTES
        if cost > self._max_bytes:
            raise SpoolError(
                f"{self._path}: window {index} needs {cost} bytes, the spool holds {self._max_bytes}: "
                "make the spool larger or choose a later cut"
            )
        row = (message_id, index, uncertainty if math.isfinite(uncertainty) else 0.0, payload)

        def insert() -> list[str]:
            inserted = self._db.execute(_INSERT, row)
            if not inserted.rowcount or inserted.lastrowid is None:
                return []
            self._change.put, self._change.bytes = 1, self._change.bytes + cost
            self._remember(message_id, inserted.lastrowid, len(payload))
            return self._drop_excess()

        return self._changed(insert)

    def oldest(self, limit: int) -> list[SpooledFrame]:
        """Return up to `limit` frames in the order they were put; they stay until acknowledged.

        Raises:
            SpoolError: the disk fails.
        """
        wanted = max(0, limit)

        def select() -> list[SpooledFrame]:
            rows = self._db.execute(
                "SELECT message_id, window_index, payload, uncertainty FROM frames ORDER BY place LIMIT ?",
                (wanted + len(self._acked),),
            ).fetchall()
            return [SpooledFrame(*row) for row in rows if row[0] not in self._acked][:wanted]

        return self._guarded(select)

    def discard(self, unwanted: Callable[[builtins.bytes], bool]) -> int:
        """Drop the frames whose payload is unwanted; returns how many.

        Raises:
            SpoolError: the disk fails.
        """

        def delete() -> int:
            dropped = 0
            for message_id, place in self._db.execute("SELECT message_id, place FROM frames").fetchall():
                (payload,) = self._db.execute("SELECT payload FROM frames WHERE place = ?", (place,)).fetchone()
                if unwanted(payload):
                    dropped += self._remove(message_id, place, len(payload))
            self._change.dropped = dropped
            return dropped

        return self._changed(delete)

    def ack(self, message_ids: Iterable[str], with_next_put: bool = False) -> None:
        """Remove frames the server has; unknown ids change nothing. A disk that refuses raises nothing.

        With `with_next_put` the disk is written once for both; a process that dies before sends the frames again.
        """
        with self._lock:
            self._acked.update(message_ids)
            if with_next_put or not self._acked:
                return
            try:
                self._changed(lambda: None)
            except SpoolError as exc:
                _LOG.warning("acknowledgements kept in memory: %s", exc)

    def state(self) -> SpoolState:
        """What is in it now. Raises SpoolError when the disk fails."""
        put, acked, dropped, stored_bytes = self._totals()
        return SpoolState(put - acked - dropped, stored_bytes, self._max_bytes, self.recoveries)

    def depth(self) -> int:
        """Number of frames stored. Raises SpoolError when the disk fails."""
        counters = self.counters()
        return counters.put - counters.acked - counters.dropped

    def bytes(self) -> int:
        """Bytes counted against `max_bytes`. Raises SpoolError when the disk fails."""
        return self._totals()[3]

    def counters(self) -> SpoolCounters:
        """Frames put, acknowledged and dropped so far. Raises SpoolError when the disk fails."""
        return SpoolCounters(*self._totals()[:3])

    def close(self) -> None:
        """Write everything out and release the file."""
        with self._lock:
            self._closed = True
            self._disconnect()

    @property
    def _db(self) -> sqlite3.Connection:
        if self._closed:
            raise SpoolError(f"{self._path}: this spool was closed")
        if self._connection is None:
            self._connection = self._connect()
        return self._connection

    def _disconnect(self) -> None:
        self._stored_bytes = None
        self._places.clear()
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _totals(self) -> tuple[int, int, int, int]:
        row: tuple[int, int, int, int]
        row = self._guarded(lambda: self._db.execute("SELECT * FROM totals").fetchone())
        return row

    def _delete_acked(self) -> None:
        for message_id in self._acked:
            known = (
                self._places.pop(message_id, None)
                or self._db.execute(
                    "SELECT place, length(payload) FROM frames WHERE message_id = ?", (message_id,)
                ).fetchone()
            )
            if known is not None:
                self._change.acked += self._remove(message_id, *known)

    def _drop_excess(self) -> list[str]:
        if self._stored_bytes is None:
            (self._stored_bytes,) = self._db.execute("SELECT bytes FROM totals").fetchone()
        dropped = []
        while self._stored_bytes + self._change.bytes > self._max_bytes:
            message_id, place, payload_bytes = self._db.execute(
                "SELECT message_id, place, length(payload) FROM frames ORDER BY uncertainty, place LIMIT 1"
            ).fetchone()
            self._change.dropped += self._remove(message_id, place, payload_bytes)
            dropped.append(message_id)
        return dropped

    def _remember(self, message_id: str, place: int, payload_bytes: int) -> None:
        """Where a frame lies: most are acknowledged before many others are put."""
        self._places[message_id] = place, payload_bytes
        if len(self._places) > _REMEMBERED:
            del self._places[next(iter(self._places))]

    def _remove(self, message_id: str, place: int, payload_bytes: int) -> int:
        """How many frames it was: none when another frame has that place by now."""
        removed = self._db.execute(
            "DELETE FROM frames WHERE place = ? AND message_id = ?", (place, message_id)
        ).rowcount
        self._change.bytes -= removed * (payload_bytes + ROW_BYTES)
        return removed

    def _changed(self, work: Callable[[], _Result]) -> _Result:
        """Do something and delete what is acknowledged in one transaction, under `_guarded`."""

        def transaction() -> _Result:
            db, self._change = self._db, _Change()
            db.execute("BEGIN IMMEDIATE")
            try:
                self._delete_acked()
                result = work()
                change = self._change
                # The totals are written once, with what was counted on the way.
                db.execute(_UPDATE_TOTALS, (change.put, change.acked, change.dropped, change.bytes))
                db.execute("COMMIT")
            except BaseException:
                self._stored_bytes = None
                self._places.clear()
                if db.in_transaction:  # SQLite rolls back on its own after some errors
                    db.execute("ROLLBACK")
                raise
            if self._stored_bytes is not None:
                self._stored_bytes += change.bytes
            self._acked.clear()
            return result

        return self._guarded(transaction)

    def _guarded(self, operation: Callable[[], _Result]) -> _Result:
        """Run under the lock; replace a damaged database once, turn what the disk refuses into SpoolError."""
        with self._lock:
            try:
                try:
                    return operation()
                except sqlite3.DatabaseError as exc:
                    if not _is_damage(exc):
                        raise
                    self._move_aside(exc)
                    return operation()
            except (sqlite3.Error, OSError) as exc:
                raise SpoolError(
                    f"{self._path}: the spool's disk refuses ({exc}): free space or check the disk"
                ) from exc

    def _connect(self) -> sqlite3.Connection:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        db = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False, timeout=1.0)
        try:
            if _pragma(db, "schema_version") == 0:
                db.executescript(
                    f"BEGIN IMMEDIATE; PRAGMA application_id = {_APPLICATION_ID}; "
                    f"PRAGMA user_version = {_SCHEMA_VERSION}; {_SCHEMA} COMMIT"
                )
            if (_pragma(db, "application_id"), _pragma(db, "user_version")) != (
                _APPLICATION_ID,
                _SCHEMA_VERSION,
            ):
                raise SpoolError(f"{self._path}: a database, but no spool of this version: give another path")
            if (verdict := _pragma(db, "quick_check(1)")) != "ok":
                raise sqlite3.DatabaseError(verdict)
            _pragma(db, "journal_mode = WAL")
            db.execute(f"PRAGMA synchronous = {self._synchronous}")
            # Overwriting what is deleted (Debian's default) wears the card and needs space on a full disk.
            db.execute("PRAGMA secure_delete = OFF")
            return db
        except BaseException:
            db.close()
            raise

    def _move_aside(self, reason: Exception) -> None:
        """Keep the damaged database, the last one only, for whoever wants to look at it."""
        self._disconnect()
        aside = self._path.with_name(self._path.name + ".corrupt")
        os.replace(self._path, aside)
        for suffix in ("-wal", "-shm"):
            self._path.with_name(self._path.name + suffix).unlink(missing_ok=True)
        self.recoveries += 1
        _LOG.error("%s: damaged (%s), moved to %s, starting an empty spool", self._path, reason, aside)


def _pragma(db: sqlite3.Connection, name: str) -> int | str:
    value: int | str = db.execute(f"PRAGMA {name}").fetchone()[0]
    return value


def _is_damage(exc: sqlite3.DatabaseError) -> bool:
    """Whether the file itself is bad: sqlite3 uses the bare class for that and subclasses for the rest."""
    return type(exc) is sqlite3.DatabaseError

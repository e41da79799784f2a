"""Frames on disk between capture and the server's acknowledgement.

    spool = Spool(Path("spool.db"), max_bytes=64 << 20)
    spool.put("device-boot-17", 17, frame, uncertainty=0.8)
    for item in spool.oldest(16):
        send(item.payload)
    spool.ack([item.message_id])

What survives: every `put` that has returned survives the death of the process, SIGKILL included. A power cut
never damages the spool, but may lose the last half minute of puts or so (until Linux writes them out).
With `power_safe=True` every put and ack waits for the disk: 5 to 50 ms on an SD card, and wear.

| trouble | what the device loop sees |
|---|---|
| the spool is full | the least informative frame is dropped (lowest uncertainty, then oldest); `dropped` counts it |
| a frame is damaged | it is dropped; logged, counted in `damaged` |
| the database is damaged | moved to `<path>.corrupt`; a new one holds the frames that can be read |
| frames are missing | (file deleted, its log gone, an older copy) counted in `damaged`, going by `<path>.note` |
| the disk is full or fails | SpoolError; what is stored stays, the next call tries again |
| ... while acking | no error: the frames are hidden, and deleted by the next call that succeeds |

The device catches SpoolError, counts the window and continues.
"""

from __future__ import annotations

import builtins
import logging
import math
import sqlite3
import threading
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from runtime_edge.errors import SpoolError
from runtime_edge.transport.spool import spool_file
from runtime_edge.transport.spool.spool_database import SpoolDatabase
from runtime_edge.transport.spool.spool_totals import Totals

ROW_BYTES = 128
"""What a frame counts beyond its payload: its row and its entries in two indices."""

_LOG = logging.getLogger(__name__)
_SELECT = f"SELECT place, {spool_file.COLUMNS} FROM frames"  # noqa: S608
_INSERT = f"""
INSERT INTO frames (place, {spool_file.COLUMNS}) VALUES (?, ?, ?, ?, ?, ?)
ON CONFLICT (message_id) DO NOTHING
"""  # noqa: S608
_FIND = "SELECT place, length(payload) FROM frames WHERE message_id = ?"
_REMEMBERED = 256
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
    """Counts since the spool was created, across restarts; it now holds `put - acked - dropped` frames."""

    put: int
    acked: int
    dropped: int


class _Change:
    """One transaction, and what it changes."""

    __slots__ = ("acked", "before", "bytes", "damaged", "db", "dropped", "newest", "put", "removed", "stored")

    def __init__(self, db: sqlite3.Connection, before: Totals) -> None:
        self.db, self.before, self.newest = db, before, before.newest
        self.put = self.acked = self.dropped = self.damaged = self.bytes = 0
        self.stored: tuple[str, int, int] | None = None
        self.removed: list[int] = []

    def remove(self, message_id: str, place: int, payload_bytes: int) -> None:
        """Remove the frame that was read at `place`."""
        if self.db.execute("DELETE FROM frames WHERE place = ?", (place,)).rowcount != 1:
            raise spool_file.Damage(f"frame {message_id} is not where it was read")
        self.bytes -= payload_bytes + ROW_BYTES
        self.removed.append(place)

    def totals(self) -> Totals:
        """The counters after the transaction."""
        put, acked, dropped, stored_bytes, _ = self.before
        if self.newest in self.removed:
            (self.newest,) = self.db.execute("SELECT coalesce(max(place), 0) FROM frames").fetchone()
        dropped += self.dropped + self.damaged
        return Totals(put + self.put, acked + self.acked, dropped, stored_bytes + self.bytes, self.newest)


@dataclass(frozen=True, slots=True)
class SpoolState:
    """What waits on the disk."""

    frames: int
    bytes: int
    limit_bytes: int
    recoveries: int
    """Damaged databases rebuilt in this run."""


class Spool:
    """Bounded queue on disk (SQLite, write-ahead log).

    Any method may be called from any thread; calls wait for each other. Only one process may write at a time; others
    may read the file. Its size on disk stays below about 1.5 times `max_bytes` plus 8 MiB.

    Args:
        path: the database file; its directory is created.
        max_bytes: bound on the payloads plus `ROW_BYTES` for each frame.
        power_safe: see the module's docstring.

    Raises:
        SpoolError: the file belongs to another program or a newer version, or the disk refuses.
    """

    def __init__(self, path: Path, max_bytes: int, power_safe: bool = False) -> None:
        if max_bytes <= ROW_BYTES:
            raise SpoolError(f"{path}: max_bytes is {max_bytes}, must be more than {ROW_BYTES}")
        self._path = path
        self._max_bytes = max_bytes
        self._database = SpoolDatabase(path, "FULL" if power_safe else "NORMAL", ROW_BYTES)
        self._lock = threading.RLock()
        self._acked: dict[str, tuple[int, int] | None] = {}
        self._damaged_places: set[int] = set()
        self._places: dict[str, tuple[int, int]] = {}
        self._closed = False
        self.counters()

    def put(self, message_id: str, index: int, payload: builtins.bytes, uncertainty: float) -> list[str]:
        """Store one frame; it is durable when this returns (see the module's docstring).

        A full spool drops its least informative frames, perhaps this one; returns the ids of those dropped. An id that
        is already stored changes nothing. An uncertainty that is not a finite number counts as 0.

        Raises:
            SpoolError: the frame alone is larger than the spool, or the disk is full or fails.
        """
        if not isinstance(payload, (builtins.bytes, bytearray, memoryview)):
            raise SpoolError(f"{self._path}: window {index}'s payload is a {type(payload).__name__}, must be bytes")
        cost = len(payload) + ROW_BYTES
        if cost > self._max_bytes:
            raise SpoolError(
                f"{self._path}: window {index} needs {cost} bytes, the spool holds {self._max_bytes}: "
                "make the spool larger or choose a later cut"
            )
        # Not -0.0: SQLite does not keep the sign.
        fields = (message_id, int(index), float(uncertainty) + 0.0 if math.isfinite(uncertainty) else 0.0, payload)
        row = (*fields, spool_file.checksum(*fields))

        def insert(change: _Change) -> list[str]:
            place = change.before.put + 1
            if not change.db.execute(_INSERT, (place, *row)).rowcount:
                return []
            change.put, change.newest = 1, place
            change.bytes += cost
            change.stored = message_id, place, len(payload)
            return self._drop_excess(change)

        return self._changed(insert)

    def oldest(self, limit: int) -> list[SpooledFrame]:
        """Return up to `limit` frames in the order they were put; they stay until acknowledged.

        Damaged frames are dropped on the way.

        Raises:
            SpoolError: the disk fails.
        """

        def select() -> list[SpooledFrame]:
            frames: list[SpooledFrame] = []
            with closing(self._db.execute(f"{_SELECT} ORDER BY place")) as rows:
                while len(frames) < limit and (row := rows.fetchone()) is not None:
                    frame = self._read(row)
                    if frame is not None and frame.message_id not in self._acked:
                        frames.append(frame)
                        self._remember(frame.message_id, row[0], len(frame.payload))
            return frames

        with self._lock:
            damaged = len(self._damaged_places)
            frames = self._guarded(select)
            if len(self._damaged_places) > damaged:
                self._write_pending()
            return frames

    def discard(self, unwanted: Callable[[builtins.bytes], bool]) -> int:
        """Drop the frames whose payload is unwanted; returns how many.

        Raises:
            SpoolError: the disk fails.
        """

        def delete(change: _Change) -> int:
            for (place,) in change.db.execute("SELECT place FROM frames NOT INDEXED").fetchall():
                frame = self._read(change.db.execute(f"{_SELECT} WHERE place = ?", (place,)).fetchone())
                if frame is not None and unwanted(frame.payload):
                    change.remove(frame.message_id, place, len(frame.payload))
                    change.dropped += 1
            return change.dropped

        dropped = self._changed(delete)
        self._write_pending()
        return dropped

    def ack(self, message_ids: Iterable[str], with_next_put: bool = False) -> None:
        """Remove frames that the server has; unknown ids change nothing. A failing disk raises nothing here.

        With `with_next_put` the disk is written once for both; a process that dies in between sends the frames again.
        """
        with self._lock:
            for message_id in message_ids:
                self._acked[message_id] = self._places.get(message_id)
            if not with_next_put:
                self._write_pending()

    def state(self) -> SpoolState:
        """What the spool holds now. Raises SpoolError if the disk fails."""
        return SpoolState(self.depth(), self.bytes(), self._max_bytes, self.recoveries)

    def depth(self) -> int:
        """Number of frames stored and not acknowledged. Raises SpoolError if the disk fails."""
        with self._lock:
            return self._totals().frames - self._hidden("")

    def count(self, prefix: str) -> int:
        """How many of them have an id that begins with `prefix`. Raises SpoolError if the disk fails."""
        select = "SELECT count(*) FROM frames WHERE message_id >= ? AND message_id < ?"
        with self._lock:
            (frames,) = self._guarded(lambda: self._db.execute(select, (prefix, prefix + "\U0010ffff")).fetchone())
            return int(frames) - self._hidden(prefix)

    def holds(self, message_id: str) -> bool:
        """Whether a frame is stored and not acknowledged. Raises SpoolError if the disk fails."""
        with self._lock:
            return message_id not in self._acked and self._guarded(lambda: self._find(self._db, message_id)) is not None

    def bytes(self) -> int:
        """Bytes counted against `max_bytes`. Raises SpoolError if the disk fails."""
        return self._totals().bytes

    def counters(self) -> SpoolCounters:
        """Frames put, acknowledged and dropped so far. Raises SpoolError if the disk fails."""
        totals = self._totals()
        return SpoolCounters(totals.put, totals.acked, totals.dropped)

    def close(self) -> None:
        """Write everything out and release the file."""
        with self._lock:
            self._closed = True
            self._places.clear()
            self._database.close()

    @property
    def losses(self) -> int:
        """A number that changes whenever frames were lost to damage or the database was rebuilt."""
        return self._database.recoveries + self._database.damaged

    @property
    def recoveries(self) -> int:
        """Damaged databases rebuilt since this object was created."""
        return self._database.recoveries

    @property
    def damaged(self) -> int:
        """Frames known to be lost to damage since then: changed, unreadable or missing ones."""
        return self._database.damaged

    @property
    def _db(self) -> sqlite3.Connection:
        if self._closed:
            raise SpoolError(f"{self._path}: this spool was closed")
        return self._database.connection

    def _totals(self) -> Totals:
        return self._guarded(lambda: (self._db, self._database.totals)[1])

    def _hidden(self, prefix: str) -> int:
        """Stored frames that are acknowledged but not deleted yet."""
        return sum(place is not None and key.startswith(prefix) for key, place in self._acked.items())

    def _read(self, row: tuple[int, str, int, float, builtins.bytes, int]) -> SpooledFrame | None:
        """The frame in a row; None if it is not as it was put, and then the next change drops it."""
        place, message_id, index, uncertainty, payload, _ = row
        if place not in self._damaged_places and spool_file.is_intact(row[1:]):
            return SpooledFrame(message_id, index, payload, uncertainty)
        self._damaged_places.add(place)
        return None

    def _find(self, db: sqlite3.Connection, message_id: str) -> tuple[int, int] | None:
        """Place of a frame, and the size of its payload."""
        known: tuple[int, int] | None = self._places.get(message_id)
        return known or db.execute(_FIND, (message_id,)).fetchone()

    def _write_pending(self) -> None:
        """Delete acknowledged and damaged frames, now or, if the disk refuses, later."""
        with self._lock:
            if self._acked or self._damaged_places:
                try:
                    self._changed(lambda change: None)
                except SpoolError as exc:
                    _LOG.warning("acknowledgements kept in memory: %s", exc)

    def _delete_pending(self, change: _Change) -> None:
        for message_id in self._acked:
            known = self._find(change.db, message_id)
            if known is not None:
                change.remove(message_id, *known)
                change.acked += 1
        if self._damaged_places:
            for place in self._damaged_places:
                change.remove("", place, 0)
            change.damaged = len(self._damaged_places)
            # It is not known how much a damaged row once counted.
            change.bytes = spool_file.count_frames(change.db, ROW_BYTES).bytes - change.before.bytes

    def _drop_excess(self, change: _Change) -> list[str]:
        dropped = []
        while change.before.bytes + change.bytes > self._max_bytes:
            row = spool_file.least_informative(change.db)
            if row is None or (frame := self._read(row)) is None:
                raise spool_file.Damage("the least informative frame cannot be read")
            change.remove(frame.message_id, row[0], len(frame.payload))
            change.dropped += 1
            dropped.append(frame.message_id)
        return dropped

    def _remember(self, message_id: str, place: int, payload_bytes: int) -> None:
        """Remember the place of a frame that was put or read: it is removed by its place."""
        self._places.pop(message_id, None)
        self._places[message_id] = place, payload_bytes
        if len(self._places) > _REMEMBERED:
            del self._places[next(iter(self._places))]

    def _changed(self, work: Callable[[_Change], _Result]) -> _Result:
        """Do something and delete acknowledged frames in one transaction, under `_guarded`."""

        def transaction() -> _Result:
            change = _Change(self._db, self._database.totals)
            self._database.check_place()
            change.db.execute("BEGIN IMMEDIATE")
            try:
                self._delete_pending(change)
                result = work(change)
                self._database.commit(change.db, change.before, change.totals(), change.damaged)
            except BaseException:
                if change.db.in_transaction:  # SQLite rolls back on its own after some errors
                    change.db.execute("ROLLBACK")
                raise
            self._committed(change)
            return result

        return self._guarded(transaction)

    def _committed(self, change: _Change) -> None:
        """Forget removed frames, remember the stored one."""
        for message_id in self._acked:
            self._places.pop(message_id, None)
        if change.dropped or change.damaged:
            self._places = {key: value for key, value in self._places.items() if value[0] not in change.removed}
        if change.stored is not None and change.newest == change.stored[1]:  # it was not the one dropped
            self._remember(*change.stored)
        self._acked.clear()
        self._damaged_places.clear()

    def _guarded(self, operation: Callable[[], _Result]) -> _Result:
        """Run under the lock; rebuild a damaged database once, and turn a failing disk into SpoolError."""
        with self._lock:
            try:
                try:
                    return operation()
                except sqlite3.Error as exc:
                    if not spool_file.is_damage(exc):
                        raise
                    self._places.clear()
                    self._damaged_places.clear()
                    self._database.rebuild(exc)
                    self._acked = {message_id: self._find(self._db, message_id) for message_id in self._acked}
                    return operation()
            except (sqlite3.Error, OSError) as exc:
                raise SpoolError(
                    f"{self._path}: the spool's disk refuses ({exc}): free space or check the disk"
                ) from exc

"""The spool's database file: its tables, the checksum of each row, and recovery from a damaged file."""

from __future__ import annotations

import contextlib
import sqlite3
import zlib
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from runtime_edge.errors import SpoolError
from runtime_edge.formats import wire
from runtime_edge.transport.spool.spool_totals import Found, Totals

COLUMNS = "message_id, window_index, uncertainty, payload, checksum"
_APPLICATION_ID = 0x53534353
_SCHEMA_VERSION = 2
_PAGE_BYTES = 4096
_SCHEMA = """
CREATE TABLE frames (
    place INTEGER PRIMARY KEY, message_id TEXT NOT NULL UNIQUE, window_index INTEGER NOT NULL,
    uncertainty REAL NOT NULL, payload BLOB NOT NULL, checksum INTEGER);
CREATE TABLE totals (put INTEGER, acked INTEGER, dropped INTEGER, bytes INTEGER);
INSERT INTO totals VALUES (0, 0, 0, 0);
"""
_INDEX = "CREATE INDEX least_informative ON frames (uncertainty, place)"
"""Created when the spool is full for the first time: most never are, and every put and every ack would write to it."""
_INSERT = f"INSERT OR IGNORE INTO frames (place, {COLUMNS}) VALUES (?, ?, ?, ?, ?, ?)"  # noqa: S608
_BATCH = 1000
_PLACES = (
    "SELECT place FROM frames NOT INDEXED ORDER BY place DESC",
    "SELECT place FROM frames INDEXED BY least_informative ORDER BY uncertainty, place",
    "SELECT place FROM frames INDEXED BY least_informative ORDER BY uncertainty DESC, place DESC",
    "SELECT place FROM frames INDEXED BY sqlite_autoindex_frames_1 ORDER BY message_id",
    "SELECT place FROM frames INDEXED BY sqlite_autoindex_frames_1 ORDER BY message_id DESC",
)
"""Every way to find out where rows lie, for when the direct one ends at a damaged page."""
_Row = tuple[Any, ...]


class Damage(sqlite3.DatabaseError):
    """SQLite reads the file, but it is not what was written."""


def is_damage(exc: sqlite3.Error) -> bool:
    """Whether the file itself is bad, rather than the disk full, locked or failing."""
    if isinstance(exc, sqlite3.OperationalError):
        return str(exc).startswith(("no such ", "unsupported file format"))
    return isinstance(exc, sqlite3.DatabaseError) and not isinstance(exc, sqlite3.ProgrammingError)


def checksum(message_id: str, index: int, uncertainty: float, payload: bytes) -> int:
    """CRC-32 of a row's fields; of a payload with a checksum of its own (`wire.has_checksum`) only both ends count."""
    fields = f"{message_id}\0{index}\0{uncertainty!r}\0".encode(errors="surrogateescape")
    if wire.has_checksum(payload):
        return zlib.crc32(payload[-wire.CHECKSUM_BYTES :], zlib.crc32(fields + payload[:2]))
    return zlib.crc32(payload, zlib.crc32(fields))


def is_intact(row: _Row) -> bool:
    """Whether a row of `COLUMNS` is as it was put; rows of the first version have no checksum."""
    message_id, index, uncertainty, payload, check = row
    kinds = isinstance(message_id, str), isinstance(index, int), isinstance(uncertainty, float)
    if not all(kinds) or not isinstance(payload, bytes):
        return False
    if check is None:
        return True
    if check != checksum(message_id, index, uncertainty, payload):
        return False
    return not wire.has_checksum(payload) or wire.is_whole(payload)


def open_database(path: Path) -> sqlite3.Connection:
    """A connection to the spool at `path`, which is created, or upgraded to this version.

    Raises:
        SpoolError: the file belongs to another program or a newer version.
        sqlite3.Error: the disk refuses, or `is_damage`.
    """
    db = _connect(path)
    try:
        _identify(db, path)
        if (verdict := pragma(db, "quick_check(1)")) != "ok":
            raise Damage(verdict)
        pragma(db, "journal_mode = WAL")
        # Overwriting deleted data (Debian's default) wears the card and needs space on a full disk.
        db.execute("PRAGMA secure_delete = OFF")
        return db
    except BaseException:
        db.close()
        raise


def stored_totals(db: sqlite3.Connection) -> Totals | None:
    """The counters in the database; None if they are damaged."""
    rows = db.execute("SELECT put, acked, dropped, bytes FROM totals").fetchall()
    if len(rows) != 1 or not all(isinstance(value, int) and value >= 0 for value in rows[0]):
        return None
    return Totals(*rows[0])


def replace_totals(db: sqlite3.Connection, totals: Totals) -> None:
    """Replace the counters."""
    db.execute("BEGIN IMMEDIATE")
    db.execute("DELETE FROM totals")
    db.execute("INSERT INTO totals VALUES (?, ?, ?, ?)", (totals.put, totals.acked, totals.dropped, totals.bytes))
    db.execute("COMMIT")


def least_informative(db: sqlite3.Connection) -> _Row | None:
    """Place and columns of the frame to drop first; None if there is none. Call it within a transaction."""
    db.execute(_INDEX.replace("INDEX", "INDEX IF NOT EXISTS"))
    row: _Row | None = db.execute(
        f"SELECT place, {COLUMNS} FROM frames ORDER BY uncertainty, place LIMIT 1"  # noqa: S608
    ).fetchone()
    return row


def count_frames(db: sqlite3.Connection, row_bytes: int) -> Found:
    """Count the table of frames; each row counts `row_bytes` in addition to its payload. Raises Damage."""
    frames, payloads, oldest, newest = db.execute(
        "SELECT count(*), coalesce(sum(length(payload)), 0), coalesce(min(place), 1), coalesce(max(place), 0)"
        " FROM frames NOT INDEXED"
    ).fetchone()
    if oldest < 1:
        raise Damage(f"a frame has the place {oldest}")
    return Found(frames, payloads + frames * row_bytes, newest)


def salvage(path: Path, source: sqlite3.Connection | None, target: Path, last_place: int | None) -> None:
    """Copy the intact frames of a damaged spool to a new one at `target`, in their order.

    Frames keep their places if these are in order and at most `last_place`. What does not fit on the disk is left
    out. The new spool takes over the damaged one's counters if they can be read; they need not agree with its frames.

    Args:
        path: the damaged database, not used if it is still open as `source`.
        source: a connection to it, if its file has been moved or deleted.
        target: where the new one is created.
        last_place: the newest place that was assigned, None if that is not known.

    Raises:
        sqlite3.Error, OSError: the disk refuses.
    """
    for suffix in ("", "-wal", "-shm", "-journal"):
        target.with_name(target.name + suffix).unlink(missing_ok=True)
    with closing(_connect(target)) as new:
        _create(new)
        if source is not None:
            _copy(source, new, last_place)
            return
        with _first_page_repaired(path, target.read_bytes()[:_PAGE_BYTES]), closing(_connect(path)) as old:
            _copy(old, new, last_place)


def pragma(db: sqlite3.Connection, name: str) -> int | str:
    """The value of a pragma."""
    value: int | str = db.execute(f"PRAGMA {name}").fetchone()[0]
    return value


def _connect(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=1.0)
    db.text_factory = _text
    return db


def _text(raw: bytes) -> str:
    """Decode text from a row that may be damaged."""
    return raw.decode(errors="surrogateescape")


def _identify(db: sqlite3.Connection, path: Path) -> None:
    """Create the tables, upgrade them, or say what is wrong with the file."""
    with path.open("rb") as file:
        head = file.read(100)
    is_database = head.startswith(b"SQLite format 3\0")
    ours = not is_database or head[68:72] == _APPLICATION_ID.to_bytes(4, "big")
    if ours and head and not _header_is_right(head):
        raise Damage("its header is not a spool's")
    try:
        schema = _schema(db)
        if not schema and ours and pragma(db, "page_count") in (0, 1):
            _create(db)
            return
        version = pragma(db, "user_version")
    except sqlite3.DatabaseError as exc:
        if is_damage(exc) and not ours:
            raise SpoolError(f"{path}: a damaged database of another program: give another path") from exc
        raise
    tables = [statement for statement in schema if statement != _INDEX]
    if tables not in (_expected(1), _expected(2)):
        if ours and (not is_database or version in (1, _SCHEMA_VERSION)):
            raise Damage("its tables are not a spool's")
        raise SpoolError(f"{path}: a database, but not a spool of this version: give another path")
    if tables == _expected(1):
        db.execute("BEGIN IMMEDIATE")
        db.execute("ALTER TABLE frames ADD COLUMN checksum INTEGER")
        db.execute(f"PRAGMA user_version = {_SCHEMA_VERSION}")
        db.execute("COMMIT")
    for name, value in (("application_id", _APPLICATION_ID), ("user_version", _SCHEMA_VERSION)):
        if pragma(db, name) != value:
            db.execute(f"PRAGMA {name} = {value}")


def _create(db: sqlite3.Connection) -> None:
    db.executescript(
        f"PRAGMA page_size = {_PAGE_BYTES}; BEGIN IMMEDIATE; PRAGMA application_id = {_APPLICATION_ID}; "
        f"PRAGMA user_version = {_SCHEMA_VERSION}; {_SCHEMA} COMMIT"
    )


def _schema(db: sqlite3.Connection) -> list[str]:
    return [sql for (sql,) in db.execute("SELECT sql FROM sqlite_master WHERE sql NOT NULL ORDER BY sql")]


def _expected(version: int) -> list[str]:
    text = _SCHEMA if version == _SCHEMA_VERSION else _SCHEMA.replace(", checksum INTEGER", "")
    return sorted(statement.strip() for statement in text.split(";") if "CREATE" in statement)


def _header_is_right(head: bytes) -> bool:
    """Whether the header fields that are the same in every spool are right: those that SQLite does not check itself."""
    journal_and_reserved, format_and_text = head[18:21], head[44:48] + head[56:60]
    vacuum = head[52:56] + head[64:68]
    right = journal_and_reserved in (b"\1\1\0", b"\2\2\0") and format_and_text == b"\0\0\0\4\0\0\0\1"
    return right and not any(vacuum)


@contextlib.contextmanager
def _first_page_repaired(path: Path, first_page: bytes) -> Iterator[None]:
    """Temporarily replace a damaged first page with that of a new spool: but for counters it is always the same."""
    with path.open("r+b") as file:
        found = file.read(len(first_page))
        page_bytes = int.from_bytes(found[16:18], "big")
        of_other_size = page_bytes not in (0, _PAGE_BYTES) and page_bytes & (page_bytes - 1) == 0
        if len(found) < len(first_page) or of_other_size:
            yield
            return
        # Write-ahead log; no page count and no list of free pages.
        file.seek(0)
        file.write(first_page[:18] + b"\2\2" + first_page[20:28] + bytes(12) + first_page[40:])
        file.flush()
        yield
        file.seek(0)
        file.write(found)


def _copy(source: sqlite3.Connection, target: sqlite3.Connection, last_place: int | None) -> None:
    totals = None
    with _damage_ignored():
        totals = stored_totals(source)
    limit = last_place if last_place is not None else totals.put if totals is not None else 0
    last = 0
    target.execute("BEGIN IMMEDIATE")
    try:
        for count, (place, *fields) in enumerate(_readable(source)):
            place = place if last < place <= limit else last + 1
            fields[-1] = checksum(*fields[:-1])
            last = place if target.execute(_INSERT, (place, *fields)).rowcount else last
            if count % _BATCH == _BATCH - 1:
                target.execute("COMMIT")
                target.execute("BEGIN IMMEDIATE")
    except sqlite3.OperationalError as exc:
        if "full" not in str(exc):
            raise
    if target.in_transaction:
        target.execute("COMMIT")
    totals = totals or Totals()
    replace_totals(target, totals._replace(put=max(totals.put, last)))


def _readable(db: sqlite3.Connection) -> Iterator[_Row]:
    """Place and columns of every intact row that can be read, each row at least once."""
    columns = COLUMNS
    with _damage_ignored():
        if "checksum" not in [row[1] for row in db.execute("PRAGMA table_info(frames)")]:
            columns = COLUMNS.replace("checksum", "NULL")
    select = f"SELECT place, {columns} FROM frames NOT INDEXED"  # noqa: S608
    last = -(1 << 63)
    try:
        for row in db.execute(f"{select} ORDER BY place"):
            last = row[0]
            if is_intact(row[1:]):
                yield row
        return
    except sqlite3.DatabaseError as exc:
        if not is_damage(exc):
            raise
    places: set[int] = set()
    for query in _PLACES:
        with _damage_ignored():
            places.update(place for (place,) in db.execute(query) if place > last)
    for place in sorted(places):
        with _damage_ignored():
            row = db.execute(f"{select} WHERE place = ?", (place,)).fetchone()
            if row is not None and is_intact(row[1:]):
                yield row


@contextlib.contextmanager
def _damage_ignored() -> Iterator[None]:
    try:
        yield
    except sqlite3.DatabaseError as exc:
        if not is_damage(exc):
            raise

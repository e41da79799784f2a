"""Logs as text or as one JSON object per line, and the latest problem."""

from __future__ import annotations

import datetime as dt
import io
import logging
import sys
from collections import deque
from dataclasses import dataclass
from typing import IO

import msgspec

from runtime_edge.base.line_writer import LineWriter
from runtime_edge.base.text import shown

TEXT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
_FLUSH_S = 1.0
_ORDINARY = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class JsonFormatter(logging.Formatter):
    """`{"time", "level", "logger", "message", ...}`; what was passed as `extra` becomes additional fields."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line."""
        fields = {key: value for key, value in vars(record).items() if key not in _ORDINARY}
        line: dict[str, object] = {
            "time": _iso(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": shown(record.getMessage()),
            **fields,
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return msgspec.json.encode(line, enc_hook=str).decode()


class QueuedHandler(logging.Handler):
    """Writes to standard error in a separate thread: a reader that stalls loses lines, but does not block the
    program.
    """

    def __init__(self) -> None:
        super().__init__()
        self._lines = LineWriter(lambda: io.FileIO(2, "wb", closefd=False), lambda what: None)
        self._told = 0
        """How many dropped lines have been reported."""

    def emit(self, record: logging.LogRecord) -> None:
        """Queue one record."""
        try:
            if (dropped := self._lines.dropped) > self._told and self._lines.has_room:
                self._lines.put(b"%d lines of the log were dropped\n" % (dropped - self._told))
                self._told = dropped
            self._lines.put(self.format(record).encode("utf-8", "backslashreplace") + b"\n")
        except Exception:
            self.handleError(record)

    def flush(self) -> None:
        """Wait until what was logged is written, at most a second."""
        self._lines.flush(_FLUSH_S)


def configure(level: str, style: str) -> None:
    """Log to standard error from `level` on, `style` being text or json."""
    handler: logging.Handler = logging.NullHandler()
    if sys.stderr is not None:  # closed: its descriptor may now belong to another file
        handler = QueuedHandler() if _is_standard_error(sys.stderr) else logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if style == "json" else logging.Formatter(TEXT))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)


def flush() -> None:
    """Wait a moment for what was logged to be written."""
    for handler in logging.getLogger().handlers:
        handler.flush()


def _is_standard_error(stream: IO[str]) -> bool:
    """Whether it is the real standard error, not something a program has put in its place."""
    try:
        return stream.fileno() == 2
    except (OSError, ValueError):
        return False


@dataclass(frozen=True)
class Trouble:
    """Something that was logged as a warning or worse."""

    time: str
    """ISO 8601, UTC."""
    message: str


class LastTroubles(logging.Handler):
    """Keeps the last few warnings and errors of this package while used as a context manager."""

    def __init__(self, keep: int = 5) -> None:
        super().__init__(logging.WARNING)
        self._troubles: deque[Trouble] = deque(maxlen=keep)

    def __enter__(self) -> LastTroubles:
        logging.getLogger("runtime_edge").addHandler(self)
        return self

    def __exit__(self, *exc_info: object) -> None:
        logging.getLogger("runtime_edge").removeHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep one record's time and message."""
        try:
            message = record.getMessage()
        except (TypeError, ValueError):  # may be raised by %-formatting; the other handlers report it
            message = str(record.msg)
        self._troubles.append(Trouble(_iso(record.created), shown(message)[:500]))

    def newest_first(self) -> list[Trouble]:
        """The kept problems, newest first."""
        return list(reversed(self._troubles))


def _iso(seconds: float) -> str:
    moment = dt.datetime.fromtimestamp(seconds, dt.timezone.utc)
    return moment.isoformat(timespec="milliseconds")

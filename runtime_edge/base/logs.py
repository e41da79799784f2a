"""Logs as text or as one JSON object a line, and the last thing that went wrong."""

from __future__ import annotations

import datetime as dt
import logging
from collections import deque
from dataclasses import dataclass

import msgspec

from runtime_edge.base.text import shown

TEXT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
_ORDINARY = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class JsonFormatter(logging.Formatter):
    """`{"time", "level", "logger", "message", ...}`; what was passed as `extra` comes as fields of its own."""

    def format(self, record: logging.LogRecord) -> str:
        """One line without line breaks."""
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


def configure(level: str, style: str) -> None:
    """Log to standard error from `level` on, `style` being text or json."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if style == "json" else logging.Formatter(TEXT))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)


@dataclass(frozen=True)
class Trouble:
    """Something that was logged as a warning or worse."""

    time: str
    """ISO 8601, UTC."""
    message: str


class LastTroubles(logging.Handler):
    """Keeps the last few warnings and errors of this package while it is entered as a context."""

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
        except (TypeError, ValueError):  # what a %-format may raise; the other handlers complain about it
            message = str(record.msg)
        self._troubles.append(Trouble(_iso(record.created), shown(message)[:500]))

    def newest_first(self) -> list[Trouble]:
        """At most as many as are kept."""
        return list(reversed(self._troubles))


def _iso(seconds: float) -> str:
    moment = dt.datetime.fromtimestamp(seconds, dt.timezone.utc)
    return moment.isoformat(timespec="milliseconds")

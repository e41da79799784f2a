"""When a recording began, from what the recorder wrote: AudioMoth's comment, GUANO, the broadcast chunk, the name.

A time without a zone stays without one: only the owner knows which zone a recorder's clock was set to.
"""

from __future__ import annotations

import datetime as dt
import re
from pathlib import Path

from runtime_edge.audio.files.containers import chunk

_AUDIOMOTH = re.compile(
    r"Recorded at (\d\d:\d\d:\d\d(?:\.\d+)?) (\d\d/\d\d/\d{4}) \(UTC(?:([+-])(\d{1,2})(?::?(\d\d))?)?\)"
)
_GUANO = re.compile(rb"^\s*Timestamp\s*:\s*(\S+(?: \d\d:\S+)?)", re.MULTILINE)
_NAME = re.compile(
    r"(?<!\d)(\d{4})(-?)(\d\d)\2(\d\d)(?:([Tt])|[_ $-])(\d\d)([-_.:]?)(\d\d)\7(\d\d)(?!\d)"
    r"(?(5)(Z|[+-]\d\d[-_.:]?[0-5]\d(?!\d))?)"
)
"""A zone offset may follow only if the time is written after a T; otherwise such a number is the recorder's own."""
_DATE_BYTES = 10
_BEXT_DATE = 256 + 32 + 32
"""After description, originator and originator's reference."""


def began(path: Path, comment: str) -> dt.datetime | None:
    """When the first sample was recorded; None if nothing says so. `comment`: the file's comment. Raises OSError."""
    return (
        _of_comment(comment) or _of_guano(chunk(path, b"guan")) or _of_broadcast(chunk(path, b"bext")) or _of_name(path)
    )


def _of_comment(comment: str) -> dt.datetime | None:
    found = _AUDIOMOTH.search(comment)
    if found is None:
        return None
    time, date, sign, hours, minutes = found.groups()
    shift = dt.timedelta(hours=int(hours or 0), minutes=int(minutes or 0))
    local = _parsed(f"{'-'.join(reversed(date.split('/')))}T{time}")
    if local is None or shift >= dt.timedelta(days=1):
        return None
    return local.replace(tzinfo=dt.timezone(-shift if sign == "-" else shift))


def _of_guano(text: bytes | None) -> dt.datetime | None:
    found = _GUANO.search(text or b"")
    return None if found is None else _parsed(found[1].decode("ascii", "replace").replace("Z", "+00:00"))


def _of_broadcast(data: bytes | None) -> dt.datetime | None:
    fields = (data or b"")[_BEXT_DATE : _BEXT_DATE + 18].decode("ascii", "replace")
    digits = re.sub(r"\D", "-", fields[:_DATE_BYTES]), re.sub(r"\D", ":", fields[_DATE_BYTES:])
    return _parsed("T".join(digits))


def _of_name(path: Path) -> dt.datetime | None:
    found = _NAME.search(path.stem)
    if found is None:
        return None
    year, _, month, day, _, hour, _, minute, second, shift = found.groups(default="")
    zone = "+00:00" if shift == "Z" else shift and f"{shift[:3]}:{shift[-2:]}"
    return _parsed(f"{year}-{month}-{day}T{hour}:{minute}:{second}{zone}")


def _parsed(text: str) -> dt.datetime | None:
    text = re.sub(r"\.(\d+)", lambda found: f".{found[1]:0<6.6}", text)
    try:
        moment = dt.datetime.fromisoformat(text)
    except ValueError:
        return None
    return moment if moment.year > 1970 else None  # a clock that was never set

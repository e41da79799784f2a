"""Rows and fields of a CSV of labels."""

from __future__ import annotations

import csv
import io
import math
from datetime import datetime

from runtime_edge.errors import FormatError


def numbered_rows(text: str, source: str) -> list[tuple[int, list[str]]]:
    """Rows that are not blank, each with the number of its first line as an editor counts. Raises FormatError."""
    reader = csv.reader(io.StringIO(text, newline=""))
    rows, begins = [], 1
    try:
        for fields in reader:
            if fields:
                rows.append((begins, fields))
            begins = reader.line_num + 1
    except csv.Error as exc:
        raise FormatError(f"{source}: line {reader.line_num}: {exc}") from None
    return rows


def finite_number(text: str, where: str) -> float:
    """A finite number. Raises FormatError, which begins with `where`."""
    if (value := _finite(text)) is None:
        raise FormatError(f"{where}: {text!r} is not a number")
    return value


def time_of(text: str, where: str) -> float:
    """Seconds since 1970, given so or as ISO 8601 with a zone. Raises FormatError, which begins with `where`."""
    # A number first: some numbers of seconds are dates, too, when they are read as ISO 8601.
    if (seconds := _finite(text)) is not None:
        return seconds
    try:
        moment = datetime.fromisoformat(text.replace("Z", "+00:00"))
    except ValueError:
        raise FormatError(f"{where}: time {text!r}: expected seconds since 1970 or 2026-11-21T10:00:00Z") from None
    if moment.tzinfo is None:
        raise FormatError(f"{where}: time {text!r} has no zone: end it with Z for UTC, or with a shift such as +01:00")
    return moment.timestamp()


def _finite(text: str) -> float | None:
    """The number that a text is, if it is one."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None

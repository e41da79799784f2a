"""Rows and fields of CSV files, each with the line on which it begins."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

from runtime_edge.base.files import read_text
from runtime_edge.errors import FormatError

MAX_CSV_BYTES = 64 << 20

Row = tuple[int, dict[str, str]]
"""The number of its first line, counted from 1, and its fields by column."""


def named_rows(path: Path, synonyms: Mapping[str, str] | None = None) -> list[Row]:
    """The rows of a file whose first line names the columns; missing fields are empty.

    Args:
        path: the file: UTF-8, at most `MAX_CSV_BYTES`.
        synonyms: other names of columns, in lower case, and the names used here.

    Raises:
        FormatError: it cannot be read, or is not CSV.
    """
    (_, header), *rows = numbered_rows(read_text(path, MAX_CSV_BYTES), str(path)) or [(1, [])]
    known = synonyms or {}
    names = [known.get(name.strip().lower(), name.strip().lower()) for name in header]
    empty = dict.fromkeys(names, "")
    return [(number, empty | dict(zip(names, map(str.strip, fields), strict=False))) for number, fields in rows]


def filled(row: Mapping[str, str], name: str, where: str, columns: str) -> str:
    """A field that must not be empty. Raises FormatError, which starts with `where` and lists the columns."""
    if name not in row:
        raise FormatError(f"{where}: no column {name!r}; the columns are {columns}")
    if not row[name]:
        raise FormatError(f"{where}: {name} is empty")
    return row[name]


def numbered_rows(text: str, source: str) -> list[tuple[int, list[str]]]:
    """Rows that are not blank, each with the number of its first line, counted from 1. Raises FormatError."""
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
    """A finite number. Raises FormatError, which starts with `where`."""
    if (value := _finite(text)) is None:
        raise FormatError(f"{where}: {text!r} is not a number")
    return value


def time_of(text: str, where: str) -> float:
    """Seconds since 1970, given so or as ISO 8601 with a zone. Raises FormatError, which starts with `where`."""
    # A number first: some numbers of seconds would also be valid ISO 8601 dates.
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
    """The finite number in a text; None if it is none."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None

"""Text for people: foreign text made safe for headers, logs and terminals; sizes, times and dates."""

from __future__ import annotations

import datetime as dt
import math
import os
import re
from pathlib import Path

MAX_TEXT = 500


def printable(text: str, most: int = MAX_TEXT) -> str:
    """The first `most` characters; those that control a terminal or change the text's direction become '?'."""
    return "".join(char if char.isprintable() else "?" for char in text[:most])


def shown(name: Path | str) -> str:
    """A file name, or text that holds one, in a form that UTF-8 can encode: other bytes appear as numbers."""
    try:
        return os.fsencode(name).decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # a surrogate that does not stand for a byte
        return str(name).encode("utf-8", "backslashreplace").decode()


def without_password(url: str) -> str:
    """An address as it may be shown and stored: without the user's name, password or token."""
    return re.sub(r"(^|//)(?:(?!//).)*@", r"\1***@", url)


def size(count: float) -> str:
    """A number of bytes, for people."""
    for unit in ("B", "kB", "MB"):
        if abs(count) < 999.95 or (unit == "B" and abs(count) < 999.5):
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def duration(seconds: float) -> str:
    """A duration in the largest unit of which there are at least two."""
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


def moment(at: float) -> str:
    """A time since the epoch on the local clock, to the minute and never too early; `never` if it is infinite."""
    if not math.isfinite(at):
        return "never"
    whole = dt.datetime.fromtimestamp(math.ceil(at / 60) * 60).astimezone()
    return whole.strftime("%Y-%m-%d %H:%M")

"""Text from others, made safe for a header, a log and a terminal."""

from __future__ import annotations

import os
import re
from pathlib import Path

MAX_TEXT = 500


def printable(text: str, most: int = MAX_TEXT) -> str:
    """The first `most` characters; those that a terminal would act on, or that turn the text around, become '?'."""
    return "".join(char if char.isprintable() else "?" for char in text[:most])


def shown(name: Path | str) -> str:
    """A file's name, or text that holds one, as UTF-8 can write it: bytes that are not UTF-8 by their numbers."""
    try:
        return os.fsencode(name).decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # a surrogate that represents no byte
        return str(name).encode("utf-8", "backslashreplace").decode()


def without_password(url: str) -> str:
    """An address as it may be shown and stored: without the user's name, password or token in it."""
    return re.sub(r"(^|//)(?:(?!//).)*@", r"\1***@", url)

"""Text that others have written, as it may stand in a header, in a log and on a terminal."""

from __future__ import annotations

MAX_TEXT = 500


def printable(text: str, most: int = MAX_TEXT) -> str:
    """The first `most` characters; those that a terminal would act on, or that turn the text around, become '?'."""
    return "".join(char if char.isprintable() else "?" for char in text[:most])

"""Gives freed memory back to the system, which the C library would otherwise keep."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

_kept = 0


def give_memory_back() -> None:
    """Return the memory that this process has freed to the system, if the C library can (glibc).

    glibc keeps freed memory for later: after loading ResNet-18, which is parsed and copied more than once, twice as
    much as the weights themselves.
    """
    trim = malloc_trim()
    if trim is not None and not _kept:
        trim(0)


@contextmanager
def memory_kept() -> Iterator[None]:
    """Suspend `give_memory_back`: if as much memory is needed again at once, getting the pages back takes longer."""
    global _kept
    _kept += 1
    try:
        yield
    finally:
        _kept -= 1


@cache
def malloc_trim() -> Callable[[int], Any] | None:
    """The C library's function of that name; None if it has none."""
    try:
        trim: Callable[[int], Any] | None = getattr(ctypes.CDLL(None), "malloc_trim", None)
    except (OSError, TypeError):  # Windows has no library without a name
        return None
    return trim

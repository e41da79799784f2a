"""Memory that is freed but not given back."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from typing import Any


def give_memory_back() -> None:
    """Give what this process has freed back to the system, where the C library can (glibc).

    glibc keeps freed memory for later: after loading ResNet-18, which is parsed and copied more than once, twice as
    much as the weights themselves.
    """
    trim = _malloc_trim()
    if trim is not None:
        trim(0)


@cache
def _malloc_trim() -> Callable[[int], Any] | None:
    try:
        trim: Callable[[int], Any] | None = getattr(ctypes.CDLL(None), "malloc_trim", None)
    except (OSError, TypeError):  # Windows has no library without a name
        return None
    return trim

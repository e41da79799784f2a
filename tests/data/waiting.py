"""Waiting for a condition: with a deadline so generous that only what hangs misses it, busy machines included."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")
PATIENCE_S = 240.0
"""A busy machine is slow, not wrong."""


def until(condition: Callable[[], T], what: str = "it has happened", timeout_s: float = PATIENCE_S) -> T:
    """The first true value of `condition()`; AssertionError after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {what}"
        time.sleep(0.02)
    return value


async def eventually(
    condition: Callable[[], T | Awaitable[T]], what: str = "it has happened", timeout_s: float = PATIENCE_S
) -> T:
    """`until`, while the event loop goes on; the condition may be a coroutine function."""
    deadline = time.monotonic() + timeout_s
    while not (value := await found if inspect.isawaitable(found := condition()) else found):
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {what}"
        await asyncio.sleep(0.02)
    return value

"""Ending asyncio tasks."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from typing import Any

_LOG = logging.getLogger(__name__)
_AGAIN_S = 0.1


async def cancel_all(tasks: Iterable[asyncio.Future[Any]]) -> None:
    """Cancel tasks and wait until every one has ended, however it ends.

    Asked again and again: before Python 3.12 `asyncio.wait_for` loses a cancellation that meets a result.
    """
    tasks = set(tasks)
    while pending := {task for task in tasks if not task.done()}:
        for task in pending:
            task.cancel()
        await asyncio.wait(pending, timeout=_AGAIN_S)
    for task in tasks:
        if not task.cancelled() and (failure := task.exception()) is not None:
            _LOG.warning("%s had failed: %r", task, failure)

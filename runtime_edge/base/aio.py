"""Waiting and ending without losing a cancellation."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Iterable
from typing import Any, TypeVar

_LOG = logging.getLogger(__name__)
_AGAIN_S = 1.0
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


async def cancel_all(tasks: Iterable[asyncio.Future[Any]]) -> None:
    """Cancel tasks and wait until every one has ended, however it ends.

    Cancels repeatedly: before Python 3.12, `asyncio.wait_for`, which the broker's library uses for waiting, loses a
    cancellation that coincides with a result.
    """
    tasks = set(tasks)
    while pending := {task for task in tasks if not task.done()}:
        for task in pending:
            task.cancel()
        await asyncio.wait(pending, timeout=_AGAIN_S)
    for task in tasks:
        if not task.cancelled() and (failure := task.exception()) is not None:
            _LOG.warning("%s had failed: %r", task, failure)


async def finish_unless(stopping: asyncio.Event, work: Coroutine[Any, Any, None]) -> None:
    """Do something that may take long, but end early when the event is set."""
    tasks = [asyncio.create_task(work), asyncio.create_task(stopping.wait())]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    await cancel_all(tasks)


async def within(work: Coroutine[Any, Any, _Result], seconds: float) -> _Result:
    """The result of `work`; raises asyncio.TimeoutError if it takes longer, after `work` has ended.

    Replaces `asyncio.wait_for` around the broker's library: that cancels only once, and before Python 3.12 the
    library's own waiting may lose this one cancellation (`cancel_all`).
    """
    task = asyncio.ensure_future(work)
    try:
        await asyncio.wait({task}, timeout=seconds)
        if task.done():
            return task.result()
    finally:
        if not task.done():
            await cancel_all([task])
    raise asyncio.TimeoutError


async def next_within(queue: asyncio.Queue[_Item], timeout_s: float) -> _Item | None:
    """The next item, or None if there is none within `timeout_s`; a cancellation is never lost."""
    if not queue.empty():
        return queue.get_nowait()
    getter = asyncio.ensure_future(queue.get())
    try:
        await asyncio.wait({getter}, timeout=timeout_s)
        return getter.result() if getter.done() else None
    finally:
        getter.cancel()

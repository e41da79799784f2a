"""Waiting and ending without losing a cancellation."""

from __future__ import annotations

import asyncio
import functools
import logging
import queue
import threading
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, TypeVar

_LOG = logging.getLogger(__name__)
_AGAIN_S = 1.0
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")
_Work = tuple[Callable[..., Any], tuple[Any, ...], asyncio.AbstractEventLoop, "asyncio.Future[Any]"]
_LOOK_UP_S = 0.1


class Compute:
    """The right to run the encoder and to touch the spool: one thread at a time has it.

    The loop's calls are done in a thread of its own, which wakes nobody but who waits and so spends a fifth of a pool's
    time on a hand-over; a window is run by the thread that has read it.
    """

    def __init__(self) -> None:
        self._work: queue.SimpleQueue[_Work | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._turn = threading.Lock()
        self._asked = self._done = 0
        self._one_more = threading.Event()

    async def run(self, call: Callable[..., _Result], *arguments: Any) -> _Result:
        """Do something in the thread, after what was asked before; what is cancelled before its turn is not done."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._serve, name="compute", daemon=True)
            self._thread.start()
        loop = asyncio.get_running_loop()
        done: asyncio.Future[_Result] = loop.create_future()
        self._asked += 1
        self._work.put((call, arguments, loop, done))
        return await done

    def here(self, call: Callable[..., _Result], *arguments: Any) -> _Result:
        """Do something in this thread, not the loop's, after what was asked of the other one before."""
        while self._done < self._asked:  # a lock alone may be had again before those who wait for it wake up
            self._one_more.clear()
            if self._done < self._asked:
                self._one_more.wait(_LOOK_UP_S)
        with self._turn:
            return call(*arguments)

    def shutdown(self) -> None:
        """Wait until what was asked for is done, and end the thread."""
        if self._thread is not None:
            self._work.put(None)
            self._thread.join()
            self._thread = None

    def __enter__(self) -> Compute:
        return self

    def __exit__(self, *exc: object) -> None:
        self.shutdown()

    def _serve(self) -> None:
        while (work := self._work.get()) is not None:
            call, arguments, loop, done = work
            if not done.cancelled():
                try:
                    with self._turn:
                        settle = functools.partial(_set, done, call(*arguments))
                except BaseException as exc:
                    settle = functools.partial(_set, done, None, exc)
                try:
                    loop.call_soon_threadsafe(settle)
                except RuntimeError:
                    _LOG.debug("nobody waits any more: the loop is closed")
                del settle
            self._done += 1
            self._one_more.set()
            del work, call, arguments, done  # nothing is kept alive until the next call


def _set(done: asyncio.Future[Any], result: Any, error: BaseException | None = None) -> None:
    if done.cancelled():
        return
    if error is None:
        done.set_result(result)
    else:
        done.set_exception(error)


async def cancel_all(tasks: Iterable[asyncio.Future[Any]]) -> None:
    """Cancel tasks and wait until every one has ended, however it ends.

    Asked again and again: before Python 3.12 `asyncio.wait_for`, which the broker's library waits with, loses a
    cancellation that meets a result.
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
    """Do something that may take long; it ends early when the event is set."""
    tasks = [asyncio.create_task(work), asyncio.create_task(stopping.wait())]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    await cancel_all(tasks)


async def within(work: Coroutine[Any, Any, _Result], seconds: float) -> _Result:
    """What `work` gives; asyncio.TimeoutError when it takes longer, and then it has ended.

    In the place of `asyncio.wait_for` around the broker's library: that asks once, and before Python 3.12 the library's
    own waiting may lose the one cancellation (`cancel_all`).
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
    """The next item, or None when there is none within `timeout_s`; a cancellation is never lost."""
    if not queue.empty():
        return queue.get_nowait()
    getter = asyncio.ensure_future(queue.get())
    try:
        await asyncio.wait({getter}, timeout=timeout_s)
        return getter.result() if getter.done() else None
    finally:
        getter.cancel()

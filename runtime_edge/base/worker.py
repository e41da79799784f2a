"""A worker thread and the caller's own thread, of which only one runs work at a time."""

from __future__ import annotations

import asyncio
import functools
import logging
import queue
import threading
from collections.abc import Callable
from typing import Any, TypeVar

_LOG = logging.getLogger(__name__)
_Result = TypeVar("_Result")
_Work = tuple[Callable[..., Any], tuple[Any, ...], asyncio.AbstractEventLoop, "asyncio.Future[Any]"]
_LOOK_UP_S = 0.1


class Worker:
    """Serialises the encoder and the spool: only one thread at a time runs work.

    The event loop's calls run in a thread of this class, whose hand-over costs a fifth of a thread pool's; a window
    runs in the thread that read it.
    """

    def __init__(self) -> None:
        self._work: queue.SimpleQueue[_Work | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._turn = threading.Lock()
        self._asked = self._done = 0
        self._one_more = threading.Event()

    async def run(self, call: Callable[..., _Result], *arguments: Any) -> _Result:
        """Run a call in the worker thread, in order of submission, unless it is cancelled before its turn."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._serve, name="compute", daemon=True)
            self._thread.start()
        loop = asyncio.get_running_loop()
        done: asyncio.Future[_Result] = loop.create_future()
        self._asked += 1
        self._work.put((call, arguments, loop, done))
        return await done

    def run_here(self, call: Callable[..., _Result], *arguments: Any) -> _Result:
        """Run a call in the calling thread, not the event loop's, after those already submitted with `run`."""
        while self._done < self._asked:  # a plain lock is not fair
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

    def __enter__(self) -> Worker:
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

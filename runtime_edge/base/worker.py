"""A thread that owns some state: other threads send it requests, which it serves one after the other."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar

_LOG = logging.getLogger(__name__)
_Result = TypeVar("_Result")
_Call = tuple[Callable[..., Any], tuple[Any, ...], asyncio.AbstractEventLoop, "asyncio.Future[Any]"]


def _never() -> bool:
    return False


class Worker:
    """One thread, started with the first call.

    A long call, such as reading audio to its end, calls `wait` whenever it can be interrupted; requests from others are
    served there.
    """

    def __init__(self) -> None:
        self._calls: deque[_Call] = deque()
        self._told: deque[tuple[asyncio.AbstractEventLoop, functools.partial[object]]] = deque()
        # Held while there is nothing to wake up for. A queue costs twice as much at each timeout.
        self._bell = threading.Lock()
        self._bell.acquire()
        self._thread: threading.Thread | None = None
        self._until: Callable[[], bool] = _never
        self._ending = False

    async def run(self, call: Callable[..., _Result], *arguments: Any) -> _Result:
        """Run a call in the worker's thread, in order of submission, unless it is cancelled before its turn."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._serve, name="worker", daemon=True)
            self._thread.start()
        loop = asyncio.get_running_loop()
        done: asyncio.Future[_Result] = loop.create_future()
        self._calls.append((call, arguments, loop, done))
        self._ring()
        return await done

    def wait(self, until: Callable[[], bool], timeout_s: float | None = None) -> bool:
        """In the worker's thread: serve requests until a condition holds, `timeout_s` at most; returns if it holds.

        Earlier requests come first. The condition is checked after each request, and when somebody who has changed
        something calls `wake`; it must be quick, and safe in any thread.
        """
        self._do_calls()
        deadline, left_s = (None, -1.0) if timeout_s is None else (time.monotonic() + timeout_s, timeout_s)
        outer, self._until = self._until, until
        try:
            while not until():
                self.pass_on()
                if not self._bell.acquire(True, left_s):
                    return until()
                self._do_calls()
                if deadline is not None:
                    left_s = max(0.0, deadline - time.monotonic())
            return True
        finally:
            self._until = outer

    def tell(self, loop: asyncio.AbstractEventLoop, call: Callable[..., object], *arguments: Any) -> None:
        """In the worker's thread: schedule a call in a loop, in order, for when this thread waits or calls `pass_on`.

        Only one thread at a time runs Python: a loop woken earlier would only wait for this one.
        """
        self._told.append((loop, functools.partial(call, *arguments)))

    def pass_on(self) -> None:
        """In the worker's thread: pass on the scheduled calls."""
        while self._told:
            loop, call = self._told.popleft()
            try:
                loop.call_soon_threadsafe(call)
            except RuntimeError:
                _LOG.debug("nobody waits any more: the loop is closed")

    @property
    def asked(self) -> bool:
        """Whether there are requests to serve. From any thread."""
        return bool(self._calls)

    def wake(self) -> None:
        """Say that the condition of `wait` may hold now. From any thread; wakes the worker only if it does hold."""
        if self._until():
            self._ring()

    def shutdown(self) -> None:
        """Wait until all requests are served, then end the thread."""
        if self._thread is not None:
            self._ending = True
            self._ring()
            self._thread.join()
            self._thread, self._ending = None, False

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *exc: object) -> None:
        self.shutdown()

    def _serve(self) -> None:
        while not (self._ending and not self._calls):
            self._bell.acquire()
            self._do_calls()

    def _do_calls(self) -> None:
        """Serve the requests made so far; those made meanwhile wait for the next round."""
        count = len(self._calls)
        while count and self._calls:  # a call that waits also serves those after it
            count -= 1
            self._do(*self._calls.popleft())
            self.pass_on()

    def _do(
        self,
        function: Callable[..., Any],
        arguments: tuple[Any, ...],
        loop: asyncio.AbstractEventLoop,
        done: asyncio.Future[Any],
    ) -> None:
        """Run a call and report its outcome to whoever awaits it."""
        if done.cancelled():
            return
        try:
            result = function(*arguments)
        except BaseException as exc:
            self.tell(loop, _set, done, None, exc)
        else:
            self.tell(loop, _set, done, result)

    def _ring(self) -> None:
        with contextlib.suppress(RuntimeError):  # the bell is already rung
            self._bell.release()


def _set(done: asyncio.Future[Any], result: Any, error: BaseException | None = None) -> None:
    if done.cancelled():
        return
    if error is None:
        done.set_result(result)
    else:
        done.set_exception(error)

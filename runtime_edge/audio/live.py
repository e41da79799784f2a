"""Hand-over from a thread that captures or reads audio to the one that cuts it into windows."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator
from queue import Queue
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from runtime_edge.audio.audio_block import Clock, Counters
from runtime_edge.audio.rate_check import RateCheck
from runtime_edge.audio.stream import STALL_SECONDS, SourceAudio
from runtime_edge.errors import SourceError, SscError

_LOG = logging.getLogger(__name__)
_READ_AHEAD = 8


class Waiter(Protocol):
    """How a reader waits for audio, so that it can do other work meanwhile."""

    def wait(self, until: Callable[[], bool], timeout_s: float | None = None) -> bool:
        """Wait until a condition holds, at most `timeout_s`; returns whether it holds."""

    def wake(self) -> None:
        """Say that the condition may hold now. May be called in any thread, and so may `until`."""


class IdleWaiter:
    """A waiter that does nothing else meanwhile."""

    def __init__(self) -> None:
        self._changed = threading.Condition()

    def wait(self, until: Callable[[], bool], timeout_s: float | None = None) -> bool:
        """See `Waiter.wait`."""
        with self._changed:
            return self._changed.wait_for(until, timeout_s)

    def wake(self) -> None:
        """See `Waiter.wake`."""
        with self._changed:
            self._changed.notify_all()


def read_ahead(audio: Iterator[SourceAudio], waiter: Waiter) -> Iterator[SourceAudio]:
    """Yield what a separate thread reads from `audio`, a few blocks ahead; its errors are raised here.

    The thread ends with the audio or, once nobody iterates any more, after its next block. A blocked read cannot be
    interrupted, so the thread is a daemon.
    """
    queue: Queue[SourceAudio | Exception | None] = Queue(_READ_AHEAD)
    left = threading.Event()

    def read() -> None:
        end: Exception | None = None
        try:
            for block in audio:
                queue.put(block)
                waiter.wake()
                if left.is_set():
                    return
        except Exception as exc:
            end = exc
        queue.put(end)
        waiter.wake()

    threading.Thread(target=read, name="read ahead", daemon=True).start()
    try:
        while True:
            waiter.wait(lambda: not queue.empty())
            item = queue.get()
            if item is None:
                return
            if isinstance(item, Exception):
                raise item
            yield item
    finally:
        left.set()
        while not queue.empty():  # the thread may be waiting for room
            queue.get()


class FrameQueue:
    """Bounded queue of captured frames that never blocks the capture thread.

    When it is full, the oldest half is dropped at once and one overrun is counted: dropping block by block would
    give a slow reader audio with so many gaps that no window ever fills. Frames carry their position on the capture
    time line, so the reader sees every gap and its length, whether frames were dropped here or never delivered by a
    source that stalled for more than `STALL_SECONDS`.

    One thread calls `put` and `close`, another iterates.

    The stated rate is compared with the clock (`RateCheck`).
    """

    def __init__(
        self, rate_hz: int, capacity_seconds: float, counters: Counters, clock: Clock, waiter: Waiter | None = None
    ) -> None:
        self._rate_hz = rate_hz
        self._capacity = max(1, round(capacity_seconds * rate_hz))
        self._counters = counters
        self._clock = clock
        self._waiter = waiter or IdleWaiter()
        self._lock = threading.Lock()
        self._queue: deque[tuple[int, NDArray[np.float32], float]] = deque()
        self._queued = 0
        self._position = 0
        self._started: float | None = None
        self._anchor_ns = 0
        self._rate_check = RateCheck(rate_hz, counters)
        self._closed = False
        self._error: SscError | None = None

    def put(self, frames: NDArray[np.float32]) -> None:
        """Take float32[n, channels] captured just now; the array is kept, not copied."""
        count = len(frames)
        with self._lock:
            now = self._clock.monotonic()
            if self._started is None:
                self._started = now - count / self._rate_hz
                self._anchor_ns = self._clock.wall_ns() - round(count * 1e9 / self._rate_hz)
            self._rate_check.heard(count, now)
            late = now - self._started - (self._position + count) / self._rate_hz
            if late > STALL_SECONDS:
                self._position += round(late * self._rate_hz)
            self._queue.append((self._position, frames, now))
            self._position += count
            self._queued += count
            if self._queued > self._capacity:
                self._drop_oldest_half()
        self._waiter.wake()

    def close(self, error: SscError | None = None) -> None:
        """End the stream: the reader gets what is queued, then the end or `error`."""
        with self._lock:
            self._rate_check.ended()
            self._closed = True
            self._error = error
        self._waiter.wake()

    def anchor_ns(self) -> int:
        """Wall time of the first frame captured, ns since 1970."""
        return self._anchor_ns

    def read(self, patience_seconds: float | None = None) -> Iterator[SourceAudio]:
        """Yield what was put, until closed.

        Raises:
            SourceError: nothing was captured for `patience_seconds`.
            SscError: the error that `close` was given.
        """
        expected: int | None = None
        while True:
            if not self._waiter.wait(lambda: bool(self._queue) or self._closed, patience_seconds):
                raise SourceError(f"no audio for {patience_seconds:g} s: check that it is still plugged in")
            with self._lock:
                if not self._queue:
                    if self._error is not None:
                        raise self._error
                    return
                position, frames, captured_at = self._queue.popleft()
                self._queued -= len(frames)
            gap = position - (expected or 0)
            yield SourceAudio(frames, self._rate_hz, expected is None or gap > 0, gap, captured_at)
            expected = position + len(frames)

    def _drop_oldest_half(self) -> None:
        while self._queued > self._capacity // 2 and len(self._queue) > 1:
            _, frames, _ = self._queue.popleft()
            self._queued -= len(frames)
        if not self._counters.overruns:
            _LOG.warning("audio comes faster than it is processed: the oldest is dropped, and counted")
        self._counters.overruns += 1

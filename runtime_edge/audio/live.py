"""Hand-over from a capture thread to its reader."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from runtime_edge.audio.block import Clock, Counters
from runtime_edge.audio.rate_check import RateCheck
from runtime_edge.audio.stream import STALL_SECONDS, SourceAudio
from runtime_edge.errors import SourceError, SscError

_LOG = logging.getLogger(__name__)


class FrameQueue:
    """Bounded queue of captured frames that never blocks the capture thread.

    When it is full the oldest half goes at once and one overrun is counted: dropping block by block would
    leave a slow reader with audio so full of gaps that no window ever fills.
    Frames carry their place on the capture time line, so the reader sees every gap and its length: what was
    dropped here, and what a source that stalled for more than `STALL_SECONDS` never delivered.

    One thread calls `put` and `close`, one iterates.

    The stated rate is held against the clock (`RateCheck`).
    """

    def __init__(self, rate_hz: int, capacity_seconds: float, counters: Counters, clock: Clock) -> None:
        self._rate_hz = rate_hz
        self._capacity = max(1, round(capacity_seconds * rate_hz))
        self._counters = counters
        self._clock = clock
        self._ready = threading.Condition()
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
        with self._ready:
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
            self._ready.notify()

    def close(self, error: SscError | None = None) -> None:
        """End the stream: the reader gets what is queued, then the end or `error`."""
        with self._ready:
            self._rate_check.ended()
            self._closed = True
            self._error = error
            self._ready.notify()

    def anchor_ns(self) -> int:
        """Wall time of the first frame captured, ns since 1970."""
        return self._anchor_ns

    def read(self, patience_seconds: float | None = None) -> Iterator[SourceAudio]:
        """Yield what was put until closed.

        Raises:
            SourceError: nothing was captured for `patience_seconds`.
            SscError: what `close` was given.
        """
        expected: int | None = None
        while True:
            with self._ready:
                if not self._ready.wait_for(lambda: self._queue or self._closed, patience_seconds):
                    raise SourceError(f"no audio for {patience_seconds:g} s: check that it is still plugged in")
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

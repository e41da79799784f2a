"""Reads the audio source in the worker's thread and hands over its windows one by one."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import datetime as dt
import logging
import time
from collections.abc import Callable, Generator, Iterator

import msgspec
import numpy as np
import numpy.typing as npt

from runtime_edge.audio import AudioBlock, AudioWindow, Clock, Counters, Windower, open_source
from runtime_edge.audio.source import is_live, open_watched
from runtime_edge.audio.stream import BLOCK_SECONDS
from runtime_edge.base.worker import Worker
from runtime_edge.config import DeviceConfig

_LOG = logging.getLogger(__name__)


class CapturedWindow(msgspec.Struct, frozen=True):
    """A window with its own copy of the samples: (samples,) float32 in [-1, 1]."""

    index: int
    capture_time_ns: int
    samples: npt.NDArray[np.float32]
    ready_at: float
    """The earliest time at which it could have been run, monotonic seconds."""
    file: str | None = None
    """The audio file in which it begins; None for live sources and pipes."""
    offset_s: float | None = None
    """Where it begins in that file, seconds; None without a file."""
    recorded_at: str | None = None
    """When its first sample was recorded, if the file says so."""


class CaptureState(msgspec.Struct, frozen=True):
    """The capture's state, for the device's status."""

    counters: Counters
    """A copy of the counters."""
    silent_s: float
    """How long a live source has delivered nothing, seconds, going by earlier calls; 0 for other sources."""


class _Ended(Exception):
    """Raised where the worker waits for audio that nobody wants any more."""


class Capture:
    """Reads the configured source in the worker's thread, which serves other requests while it waits for audio.

    Created and ended in the event loop's thread.
    """

    def __init__(
        self, config: DeviceConfig, sample_rate: int, window_samples: int, hop_samples: int, worker: Worker
    ) -> None:
        """Raises what `open_source` raises."""
        self._worker, self._sample_rate = worker, sample_rate
        self._counters = Counters()
        # A file played in real time need not wake anybody before a window may be complete.
        self._blocks = self._open(config, sample_rate, max(BLOCK_SECONDS, hop_samples / sample_rate))
        self._windower = Windower(window_samples, hop_samples, config.gate_db, self._counters)
        self._live = is_live(config.source, config.realtime)
        self._heard = (0, time.monotonic())
        self._handed_over = 0
        """Owned by the worker; the other attributes by the loop."""
        self._done = 0
        self._ended = False
        self._error: Exception | None = None

    def _open(self, config: DeviceConfig, sample_rate: int, block_s: float) -> Generator[AudioBlock, None, None]:
        clock, realtime = Clock(sleep=self._sleep), config.realtime
        if config.watch is not None:
            return open_watched(
                config.watch, config.state / "watched.jsonl", sample_rate, realtime, speed=config.speed,
                channel=config.channel, block_s=block_s, counters=self._counters, clock=clock, waiter=self,
            )  # fmt: skip
        return open_source(
            config.source, sample_rate, realtime, loop=config.loop, speed=config.speed, stdin_rate=config.stdin_rate,
            stdin_channels=config.stdin_channels, channel=config.channel, block_s=block_s, counters=self._counters,
            clock=clock, waiter=self,
        )  # fmt: skip

    async def read(
        self, on_window: Callable[[CapturedWindow], None], stopping: asyncio.Event, limit: int | None = None
    ) -> None:
        """Pass each window to `on_window` in the worker's thread; whoever processes it calls `window_done` afterwards.

        The next window is passed on once the last one is done, until the source ends, `limit` windows are done, or
        `stopping` is set. Raises the source's SourceError, what `on_window` raises, and the error of `window_done`.
        """
        reading = asyncio.ensure_future(self._worker.run(self._read, on_window, limit))
        stopped = asyncio.create_task(stopping.wait())
        try:
            await asyncio.wait({reading, stopped}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopped.cancel()
            self._end()
            await asyncio.wait({reading})  # a window may still be running
        reading.result()
        if self._error is not None:
            raise self._error

    def window_done(self, error: Exception | None = None) -> None:
        """Say that the last window is done, so the next may be read; `error` ends the reading.

        Call it in the event loop's thread.
        """
        self._done += 1
        if error is None:
            self._worker.wake()
        elif self._ended:
            _LOG.warning("after the end: %r", error)
        else:
            self._error = error
            self._end()

    def state(self) -> CaptureState:
        """The capture's state. Called in the worker's thread."""
        blocks, since = self._heard
        if blocks != self._counters.blocks or not self._live:
            self._heard = (self._counters.blocks, time.monotonic())
            return CaptureState(dataclasses.replace(self._counters), 0.0)
        return CaptureState(dataclasses.replace(self._counters), time.monotonic() - since)

    def wait(self, until: Callable[[], bool], timeout_s: float | None = None) -> bool:
        """The way the source waits: see `Worker.wait`."""
        holds = self._worker.wait(lambda: self._ended or until(), timeout_s)
        if self._ended:
            raise _Ended
        return holds

    def wake(self) -> None:
        """See `Worker.wake`."""
        self._worker.wake()

    def _sleep(self, seconds: float) -> None:
        if self._worker.wait(self._has_ended, seconds):
            raise _Ended

    def _end(self) -> None:
        self._ended = True
        self._worker.wake()

    def _read(self, on_window: Callable[[CapturedWindow], None], limit: int | None) -> None:
        with contextlib.closing(self._blocks), contextlib.suppress(_Ended):
            for window in self._windower.windows(self._interruptible(self._blocks)):
                captured = self._captured(window)
                if self._ended or self._worker.asked or not self._last_done():
                    self.wait(self._last_done)
                self._handed_over += 1
                on_window(captured)
                if self._handed_over == limit:
                    break
            self.wait(self._last_done)

    def _interruptible(self, blocks: Iterator[AudioBlock]) -> Iterator[AudioBlock]:
        """Serve requests between two blocks as well: a gated recording may give no window for a long time."""
        for block in blocks:
            self._worker.pass_on()
            if self._worker.asked or self._ended:
                self._sleep(0.0)
            yield block

    def _last_done(self) -> bool:
        return self._done >= self._handed_over

    def _has_ended(self) -> bool:
        return self._ended

    def _captured(self, window: AudioWindow) -> CapturedWindow:
        file, offset_s, recorded_at = window.file, None, None
        if file is not None:
            offset_s = round(window.file_offset / self._sample_rate, 6)
            if window.file_began is not None:
                recorded_at = (window.file_began + dt.timedelta(seconds=offset_s)).isoformat()
        samples, time_ns = window.samples.copy(), window.capture_time_ns
        return CapturedWindow(window.index, time_ns, samples, window.ready_at, file, offset_s, recorded_at)

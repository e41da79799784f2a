"""The capture thread: reads the audio source and hands over its windows one by one."""

from __future__ import annotations

import asyncio
import datetime as dt
import functools
import logging
import threading
import time
from collections.abc import Callable
from queue import Empty, SimpleQueue

import msgspec
import numpy as np
import numpy.typing as npt

from runtime_edge.audio import AudioWindow, Counters, Windower, open_source
from runtime_edge.audio.source import is_live
from runtime_edge.audio.stream import BLOCK_SECONDS
from runtime_edge.config import DeviceConfig

_LOG = logging.getLogger(__name__)
_LOOK_UP_S = 0.2


class CapturedWindow(msgspec.Struct, frozen=True):
    """One window, its samples a copy of its own: (samples,) float32 in [-1, 1]."""

    index: int
    capture_time_ns: int
    samples: npt.NDArray[np.float32]
    ready_at: float
    """When it could have been run at the earliest, monotonic seconds."""
    file: str | None = None
    """The audio file in which it begins; None for live sources and pipes."""
    offset_s: float | None = None
    """Where in that file, seconds; None without one."""
    recorded_at: str | None = None
    """When its first sample was recorded, if the file says so."""


class Capture:
    """Reads the configured source; `counters` says what was dropped, gated or mended."""

    def __init__(self, config: DeviceConfig, sample_rate: int, window_samples: int, hop_samples: int) -> None:
        self.counters = Counters()
        self._sample_rate = sample_rate
        self._blocks = open_source(
            config.source,
            sample_rate,
            config.realtime,
            loop=config.loop,
            speed=config.speed,
            stdin_rate=config.stdin_rate,
            stdin_channels=config.stdin_channels,
            channel=config.channel,
            # A file played in real time need wake nobody before a window may be complete.
            block_s=max(BLOCK_SECONDS, hop_samples / sample_rate),
            counters=self.counters,
        )
        self._windower = Windower(window_samples, hop_samples, config.gate_db, self.counters)
        self._place = SimpleQueue[None]()  # a semaphore that is not written in Python
        self._place.put(None)
        self._ended = False
        self._over: asyncio.Future[None] | None = None
        self._live = is_live(config.source, config.realtime)
        self._heard = (0, time.monotonic())

    @property
    def silent_s(self) -> float:
        """Since when a live source has delivered nothing, as far as this was asked before; 0 for all others."""
        blocks, since = self._heard
        if blocks != self.counters.blocks or not self._live:
            self._heard = (self.counters.blocks, time.monotonic())
            return 0.0
        return time.monotonic() - since

    async def read(
        self, on_window: Callable[[CapturedWindow], None], stopping: asyncio.Event, limit: int | None = None
    ) -> None:
        """Pass every window to `on_window` in the capture thread; whoever processes it calls `window_done` afterwards.

        The next window is passed on when the last one is done, until the source ends, `limit` windows are done, or
        `stopping` is set. Raises the source's SourceError, and the error that a window ended with.
        """
        loop = asyncio.get_running_loop()
        over = self._over = loop.create_future()
        ended = functools.partial(loop.call_soon_threadsafe, self._end)
        threading.Thread(target=self._read, args=(on_window, limit, ended), name="capture", daemon=True).start()
        stopped = asyncio.create_task(stopping.wait())
        try:
            await asyncio.wait({over, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if over.done():
                over.result()
        finally:
            stopped.cancel()
            over.cancel()
            self._ended = True

    def window_done(self, error: Exception | None = None) -> None:
        """The last window is done, so the next may be read; `error` ends the reading.

        Call it in the event loop's thread.
        """
        self._place.put(None)
        if error is not None:
            self._end(error)

    def _end(self, error: Exception | None = None) -> None:
        if self._over is None or self._over.done():
            if error is not None:
                _LOG.warning("after the end: %r", error)
        elif error is None:
            self._over.set_result(None)
        else:
            self._over.set_exception(error)

    def _read(
        self,
        on_window: Callable[[CapturedWindow], None],
        limit: int | None,
        ended: Callable[[Exception | None], object],
    ) -> None:
        try:
            for count, window in enumerate(self._windower.windows(self._blocks), start=1):
                captured = self._captured(window)
                if not self._wait_for_place():
                    return
                on_window(captured)
                if count == limit:
                    break
            if self._wait_for_place():
                ended(None)
        except Exception as exc:
            # The event loop raises every error of the source: a source that failed unnoticed would look like silence.
            # If the device has ended meanwhile, its loop is closed and nobody waits for the error.
            if not self._ended:
                ended(exc)
        finally:
            self._blocks.close()

    def _captured(self, window: AudioWindow) -> CapturedWindow:
        file, offset_s, recorded_at = window.file, None, None
        if file is not None:
            offset_s = round(window.file_offset / self._sample_rate, 6)
            if window.file_began is not None:
                recorded_at = (window.file_began + dt.timedelta(seconds=offset_s)).isoformat()
        samples, time_ns = window.samples.copy(), window.capture_time_ns
        return CapturedWindow(window.index, time_ns, samples, window.ready_at, file, offset_s, recorded_at)

    def _wait_for_place(self) -> bool:
        """Wait until the last window is done; False when reading has ended."""
        while not self._ended:
            try:
                self._place.get(timeout=_LOOK_UP_S)
            except Empty:
                continue
            return True
        return False

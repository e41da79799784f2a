"""The source in its own thread, which hands over its windows one by one."""

from __future__ import annotations

import asyncio
import functools
import logging
import threading
import time
from collections.abc import Callable
from queue import Empty, SimpleQueue

import msgspec
import numpy as np
import numpy.typing as npt

from runtime_edge.audio import Counters, Windower, open_source
from runtime_edge.audio.stream import BLOCK_SECONDS
from runtime_edge.config import DeviceConfig

_LOG = logging.getLogger(__name__)
_LOOK_UP_S = 0.2


class Captured(msgspec.Struct, frozen=True):
    """One window, its samples a copy of its own: (samples,) float32 in [-1, 1]."""

    index: int
    capture_time_ns: int
    samples: npt.NDArray[np.float32]
    ready_at: float
    """When it could have been run at the earliest, monotonic seconds."""


class Capture:
    """Reads the configured source; `counters` says what was dropped, gated or mended."""

    def __init__(self, config: DeviceConfig, sample_rate: int, window_samples: int, hop_samples: int) -> None:
        self.counters = Counters()
        self._blocks = open_source(
            config.source,
            sample_rate,
            config.realtime,
            loop=config.loop,
            speed=config.speed,
            stdin_rate=config.stdin_rate,
            stdin_channels=config.stdin_channels,
            # A file played in real time need wake nobody before a window may be complete.
            block_s=max(BLOCK_SECONDS, hop_samples / sample_rate),
            counters=self.counters,
        )
        self._windower = Windower(window_samples, hop_samples, config.gate_db, self.counters)
        self._place = SimpleQueue[None]()  # a semaphore that is not written in Python
        self._place.put(None)
        self._ended = False
        self._over: asyncio.Future[None] | None = None
        self._live = config.source == "mic" or config.source.startswith("mic:")
        self._heard = (0, time.monotonic())

    @property
    def silent_s(self) -> float:
        """Since when a live source has delivered nothing, as far as this was asked before; 0 for all others."""
        blocks, since = self._heard
        if blocks != self.counters.blocks or not self._live:
            self._heard = (self.counters.blocks, time.monotonic())
            return 0.0
        return time.monotonic() - since

    async def read(self, take: Callable[[Captured], None], stopping: asyncio.Event, limit: int | None = None) -> None:
        """Hand every window to `take`, which is called in the capture thread and says `gone_through` later on.

        The next is handed over when the last one has gone through, until the source ends, or `limit` windows have, or
        `stopping` is set. Raises the source's SourceError, and what a window ended with.
        """
        loop = asyncio.get_running_loop()
        over = self._over = loop.create_future()
        ended = functools.partial(loop.call_soon_threadsafe, self._end)
        threading.Thread(target=self._read, args=(take, limit, ended), name="capture", daemon=True).start()
        stopped = asyncio.create_task(stopping.wait())
        try:
            await asyncio.wait({over, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if over.done():
                over.result()
        finally:
            stopped.cancel()
            over.cancel()
            self._ended = True

    def gone_through(self, error: Exception | None = None) -> None:
        """A window is done with: another may come. `error` ends the reading. In the loop's thread."""
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
        self, take: Callable[[Captured], None], limit: int | None, ended: Callable[[Exception | None], object]
    ) -> None:
        try:
            for count, window in enumerate(self._windower.windows(self._blocks), start=1):
                captured = Captured(window.index, window.capture_time_ns, window.samples.copy(), window.ready_at)
                if not self._wait_for_place():
                    return
                take(captured)
                if count == limit:
                    break
            if self._wait_for_place():
                ended(None)
        except Exception as exc:
            # Whatever it was, the device loop raises it: a source that dies in silence looks like silence. When the
            # device has ended meanwhile its loop is closed, and nobody is waiting any more.
            if not self._ended:
                ended(exc)
        finally:
            self._blocks.close()

    def _wait_for_place(self) -> bool:
        """Until the last window has gone through; False when the reading has ended."""
        while not self._ended:
            try:
                self._place.get(timeout=_LOOK_UP_S)
            except Empty:
                continue
            return True
        return False

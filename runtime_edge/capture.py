"""The source in its own thread, windows handed to the device loop one by one."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable
from queue import Empty, SimpleQueue

import msgspec
import numpy as np
import numpy.typing as npt

from runtime_edge.audio import Counters, Windower, open_source
from runtime_edge.audio.stream import BLOCK_SECONDS
from runtime_edge.config import DeviceConfig

_QUEUE_WINDOWS = 4


class Captured(msgspec.Struct, frozen=True):
    """One window, its samples a copy of its own: (samples,) float32 in [-1, 1]."""

    index: int
    capture_time_ns: int
    samples: npt.NDArray[np.float32]
    ready_at: float = msgspec.field(default_factory=time.monotonic)
    """When its last sample had been read, monotonic seconds."""


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
        self._ended = threading.Event()
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

    async def windows(self, stopping: asyncio.Event) -> AsyncGenerator[Captured, None]:
        """Every window until the source ends or `stopping` is set. Raises the source's SourceError."""
        loop = asyncio.get_running_loop()
        arrived, news = deque[Captured | Exception | None](), asyncio.Event()

        def arrive(item: Captured | Exception | None) -> None:
            arrived.append(item)
            news.set()

        free = SimpleQueue[None]()  # the places, as a semaphore that is not written in Python
        for _ in range(_QUEUE_WINDOWS):
            free.put(None)
        thread = threading.Thread(target=self._read, args=(loop, arrive, free), name="capture", daemon=True)
        thread.start()
        stopped = asyncio.create_task(stopping.wait())
        stopped.add_done_callback(lambda _: arrive(None))
        try:
            while True:
                while not arrived:
                    news.clear()
                    await news.wait()
                if stopping.is_set() or (window := arrived.popleft()) is None:
                    return
                free.put(None)
                if isinstance(window, Exception):
                    raise window
                yield window
        finally:
            stopped.cancel()
            self._ended.set()

    def _read(
        self,
        loop: asyncio.AbstractEventLoop,
        arrive: Callable[[Captured | Exception | None], None],
        free: SimpleQueue[None],
    ) -> None:
        def hand_over(item: Captured | Exception | None) -> None:
            while not self._ended.is_set():
                try:
                    free.get(timeout=0.2)
                except Empty:
                    continue
                loop.call_soon_threadsafe(arrive, item)
                return

        try:
            for window in self._windower.windows(self._blocks):
                hand_over(Captured(window.index, window.capture_time_ns, window.samples.copy()))
                if self._ended.is_set():
                    return
            hand_over(None)
        except Exception as exc:
            # Whatever it was, the device loop raises it: a source that dies in silence looks like silence. When the
            # device has ended meanwhile its loop is closed, and nobody is waiting any more.
            if not self._ended.is_set():
                hand_over(exc)
        finally:
            self._blocks.close()

"""A status line on a terminal that says what the device is doing."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections import Counter
from collections.abc import Callable
from typing import TextIO

from runtime_edge.base.text import printable
from runtime_edge.formats.results import WindowResult

_EVERY_S = 0.2
_CLEAR = "\r\x1b[K"


class LiveLine:
    """A sink that overwrites its line with each result, a few times a second at most."""

    def __init__(self, stream: TextIO, device: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream, self._device, self._clock = stream, printable(device), clock
        self._finished: Counter[str] = Counter()
        self._written = -_EVERY_S
        self._write(f"{self._device}: waiting for the first window")

    def put(self, result: WindowResult) -> None:
        """Count a result and show the latest one; a revision belongs to a window already counted."""
        if not result.revises:
            self._finished[result.finished] += 1
        if (now := self._clock()) - self._written >= _EVERY_S:
            self._written = now
            where = ", ".join(f"{count:,} {name}" for name, count in sorted(self._finished.items()))
            heard = f"; {', '.join(map(printable, result.detected))}" if result.detected else ""
            windows = f"{self._finished.total():,} windows"
            self._write(f"{self._device}: {windows} ({where}), now cut {result.cut}, {result.latency_ms:.0f} ms{heard}")

    def close(self) -> None:
        """Release the line for other output."""
        self._write("")

    def _write(self, text: str) -> None:
        with contextlib.suppress(OSError):  # nobody is looking any more
            self._stream.write(_CLEAR + text[: shutil.get_terminal_size().columns - 1])
            self._stream.flush()


def live_line(stream: TextIO | None, device: str, wanted: bool) -> list[LiveLine]:
    """A list with one live line if it is wanted and the stream is a terminal, else an empty one."""
    return [LiveLine(stream, device)] if wanted and stream is not None and stream.isatty() else []

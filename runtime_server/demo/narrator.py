"""The demo's output while it runs: permanent lines, and on a terminal a progress line below them."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable
from typing import IO

from runtime_edge.base.text import printable

Clock = Callable[[], float]
_COLUMNS = 79
_TICK_S = 1.0


class Narrator:
    """Prints what happens, with the seconds since the start.

    Args:
        quiet: print nothing.
        stream: where to print.
        clock: seconds of a clock that never jumps.
    """

    def __init__(self, quiet: bool = False, stream: IO[str] | None = None, clock: Clock = time.monotonic) -> None:
        self._quiet, self._stream, self._clock = quiet, stream or sys.stderr, clock
        self._began, self._what, self._until = clock(), "", clock()
        self._shown = False

    def __call__(self, text: str) -> None:
        """Print a line that stays."""
        if self._quiet:
            return
        self._clear()
        self._stream.write(f"[{self._clock() - self._began:3.0f} s] {printable(text, 1000)}\n")
        self._show()

    def expect(self, what: str, seconds: float) -> None:
        """Set what happens now, and in how many seconds everything will be done."""
        self._what, self._until = what, self._clock() + seconds
        self._show()

    async def tick(self) -> None:
        """Redraw the progress line until cancelled."""
        while True:
            await asyncio.sleep(_TICK_S)
            self._show()

    def end(self) -> None:
        """Remove the progress line."""
        self._clear()
        self._what = ""

    @property
    def progress(self) -> str:
        """The progress line, for a terminal of 80 columns."""
        left = round(self._until - self._clock())
        when = f"about {left // 60}:{left % 60:02d} min left" if left > 0 else "longer than usual"
        text = f"... {when} · {self._what}"
        return text if len(text) <= _COLUMNS else f"{text[: _COLUMNS - 1]}…"

    def _show(self) -> None:
        if self._what and not self._quiet and self._stream.isatty():
            self._stream.write(f"\r\x1b[K{self.progress}")
            self._stream.flush()
            self._shown = True

    def _clear(self) -> None:
        if self._shown:
            self._stream.write("\r\x1b[K")
            self._shown = False

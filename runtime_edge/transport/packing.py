"""Packed mode: if answers may be late, several windows go in one message, with one acknowledgement.

Each window stays in the spool until its message is acknowledged, so nothing is lost if the process dies.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from typing import NamedTuple, Protocol

from runtime_edge.formats.wire import MAX_WINDOWS, FrameHeader, decode_frame, encode_frames

PACKED_S = 2.0
"""With a deadline at least this long, s, windows wait for each other."""
RESERVE_S = 0.4
"""Part of the deadline reserved for the network and the server, s."""
_MOST_BYTES = 256 << 10
_HOPS_ALONE = 3
"""If no window has come for this many hops, none is waited for: the audio has ended or fallen silent."""


class WaitingWindow(NamedTuple):
    """A window whose frame waits for others."""

    message_id: str
    header: FrameHeader
    payload: bytes
    frame: bytes
    embedding: bool
    """Whether its answer is to include an embedding."""
    decided: asyncio.Future[bool]
    """Receives whether the broker has stored it."""

    @property
    def kind(self) -> tuple[object, ...]:
        """What the windows of one message must have in common."""
        return (*self.header[2:6], *self.header[7:], self.embedding)


class Timer(Protocol):
    """A scheduled call (`asyncio.TimerHandle`)."""

    def cancel(self) -> None:
        """Cancel the call."""


class Timers(Protocol):
    """The part of an event loop that is needed here."""

    def time(self) -> float:
        """The loop's time, s."""

    def call_at(self, when: float, callback: Callable[[], None]) -> Timer:
        """Schedule a call at a time."""


class Packer:
    """Collects windows, and sends those of a message with `send`. Used in the event loop, which has the `timers`."""

    def __init__(self, send: Callable[[list[WaitingWindow], bytes], None], timers: Timers) -> None:
        self._send, self._timers = send, timers
        self._waiting: list[WaitingWindow] = []
        self._due = math.inf
        """When the first of them has to be sent."""
        self._timer: Timer | None = None

    def add(
        self, message_id: str, frame: bytes, embedding: bool, decided: asyncio.Future[bool], hold_s: float, hop_s: float
    ) -> None:
        """Take a window's frame, to be sent within `hold_s`. It is sent now if the next one, after `hop_s`, would
        come too late, and soon if none comes.
        """
        (header, payload), *_ = decode_frame(frame)
        window = WaitingWindow(message_id, header, payload, frame, embedding, decided)
        if self._waiting and (self._waiting[0].kind != window.kind or self._waiting[-1].header.window >= header.window):
            self.flush()
        self._waiting.append(window)
        now = self._timers.time()
        self._due = min(self._due, now + hold_s)
        self._cancel()
        self._timer = self._timers.call_at(min(self._due, now + (_HOPS_ALONE * hop_s or math.inf)), self.flush)
        is_full = len(self._waiting) == MAX_WINDOWS or sum(len(one.payload) for one in self._waiting) > _MOST_BYTES
        if is_full or now + hop_s > self._due:
            self.flush()

    def flush(self) -> None:
        """Send the waiting windows."""
        self._cancel()
        self._due = math.inf
        windows, self._waiting = self._waiting, []
        if len(windows) == 1:
            self._send(windows, windows[0].frame)
        elif windows:
            self._send(windows, encode_frames([(window.header, window.payload) for window in windows]))

    def forget(self) -> None:
        """Drop the waiting windows: they stay in the spool."""
        self._cancel()
        self._due = math.inf
        self._waiting.clear()

    def _cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

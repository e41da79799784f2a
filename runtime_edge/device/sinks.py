"""Where results go: JSON lines, a callback, events on the broker."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import IO, Literal, Protocol

import msgspec

from runtime_edge.errors import UsageError
from runtime_edge.formats import subjects
from runtime_edge.formats.results import ResultEvent, WindowResult

Callback = Callable[[WindowResult], None]


class Sink(Protocol):
    """Takes results; must not block for long."""

    def put(self, result: WindowResult) -> None:
        """Take one result."""

    def close(self) -> None:
        """No more results come."""


class JsonLines:
    """One JSON object a line to a file, or to standard output for `-`."""

    def __init__(self, path: str) -> None:
        try:
            self._file: IO[bytes] = sys.stdout.buffer if path == "-" else Path(path).open("ab")  # noqa: SIM115
        except OSError as exc:
            raise UsageError(f"results {path}: cannot be written ({exc.strerror})") from None

    def put(self, result: WindowResult) -> None:
        """Write and flush one line."""
        self._file.write(msgspec.json.encode(result) + b"\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file (not standard output)."""
        if self._file is not sys.stdout.buffer:
            self._file.close()


class CallbackSink:
    """Hands each result to a function."""

    def __init__(self, callback: Callback) -> None:
        self._callback = callback

    def put(self, result: WindowResult) -> None:
        """Call the function."""
        self._callback(result)

    def close(self) -> None:
        """Nothing to close."""


EventMode = Literal["all", "labels", "off"]
_MAX_UNSENT = 64


class EventSink:
    """Publishes results on `evt.<device>`: every one (`all`), or those with a detected label (`labels`).

    Events are for whoever listens now: while the broker is away, or does not keep up, they are dropped and counted.
    """

    def __init__(
        self,
        publish: Callable[[str, bytes], Awaitable[None]],
        device: str,
        mode: EventMode = "labels",
        threshold: float | None = None,
    ) -> None:
        """`threshold` takes the place of the head's own thresholds."""
        self.dropped = 0
        self._publish, self._device, self._mode, self._threshold = publish, device, mode, threshold
        self._unsent: set[asyncio.Future[None]] = set()

    def put(self, result: WindowResult) -> None:
        """Publish in the background; called on the event loop."""
        event = self._event(result)
        if event is None:
            return
        if len(self._unsent) >= _MAX_UNSENT:
            self.dropped += 1
            return
        sending = asyncio.ensure_future(self._publish(subjects.events(self._device), msgspec.json.encode(event)))
        self._unsent.add(sending)
        sending.add_done_callback(self._unsent.discard)

    def close(self) -> None:
        """Give up what has not been sent."""
        for sending in self._unsent:
            sending.cancel()

    def _event(self, result: WindowResult) -> ResultEvent | None:
        labels, detected = result.labels or {}, result.detected or []
        if self._threshold is not None:
            detected = [label for label, score in labels.items() if score >= self._threshold]
        if self._mode == "off" or (self._mode == "labels" and not detected):
            return None
        return ResultEvent(
            version=result.version,
            answer=result.answer,
            revises=result.revises,
            device=self._device,
            window=result.window,
            time=result.time,
            file=None if result.file is None else result.file.rpartition(os.sep)[2],
            offset_s=result.offset_s,
            labels=labels,
            detected=detected,
            uncertainty=round(result.uncertainty, 4),
            cut=result.cut,
            finished=result.finished,
            generation=result.generation,
            latency_ms=result.latency_ms,
        )

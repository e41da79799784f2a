"""Where results go: JSON lines, a callback, events on the broker."""

from __future__ import annotations

import asyncio
import functools
import io
import logging
import os
import sys
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, Protocol

import msgspec

from runtime_edge.base.line_writer import LineWriter
from runtime_edge.errors import UsageError
from runtime_edge.formats import subjects
from runtime_edge.formats.results import ResultEvent, WindowResult

_LOG = logging.getLogger(__name__)
_GRACE_S = 2.0
"""For what waits to be written when a device ends."""
_LOOK_S = 0.01
Callback = Callable[[WindowResult], None]


class Sink(Protocol):
    """Takes results; must not block for long."""

    def put(self, result: WindowResult) -> None:
        """Take one result."""

    def close(self) -> None:
        """No more results come."""


class JsonLines:
    """One JSON object a line to a file, to a named pipe, or to standard output for `-`.

    On a terminal the embedding is left out: hundreds of numbers a line, among which nobody finds the rest.
    Written in a thread of its own: a reader who does not read costs results, which are counted, and stops nobody.
    """

    def __init__(self, path: str) -> None:
        """Raises UsageError for what cannot be written."""
        self._name, self._for_people = f"results {path}", path == "-" and sys.stdout is not None and sys.stdout.isatty()
        self.lines = LineWriter(_opener(path), self._complain, reopens=_is_named_pipe(path))
        """What waits to be written, and what was lost."""

    def put(self, result: WindowResult) -> None:
        """Write one line soon."""
        self.lines.put(msgspec.json.encode(_without_embedding(result) if self._for_people else result) + b"\n")

    def close(self) -> None:
        """Write what waits, if it is read, and close the file (not standard output)."""
        self.lines.close(_GRACE_S)

    def _complain(self, what: str) -> None:
        _LOG.warning("%s: %s", self._name, what)


def _without_embedding(result: WindowResult) -> dict[str, Any]:
    return {name: value for name, value in msgspec.to_builtins(result).items() if name != "embedding"}


def _opener(path: str) -> Callable[[], Any]:
    """What opens a destination of results; a file is opened now."""
    if path == "-":
        if sys.stdout is None:
            raise UsageError("results -: standard output is closed: open it, or name a file")
        sys.stdout.flush()
        try:
            output: Any = io.FileIO(sys.stdout.fileno(), "wb", closefd=False)
        except OSError:  # not a file: a program has put something else in its place
            output = sys.stdout.buffer
        return lambda: output
    opened = functools.partial(Path(path).open, "ab", buffering=0)
    if _is_named_pipe(path):
        return opened  # which waits for a reader
    try:
        file = opened()
    except OSError as exc:
        raise UsageError(f"results {path}: cannot be written ({exc.strerror})") from None
    return lambda: file


def _is_named_pipe(path: str) -> bool:
    return path != "-" and Path(path).is_fifo()


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
        # What was revised may have been an event, which others must not go on believing.
        if self._mode == "off" or (self._mode == "labels" and not detected and not result.revises):
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
            recorded_at=result.recorded_at,
            labels=labels,
            detected=detected,
            head_generation=result.head_generation,
            uncertainty=round(result.uncertainty, 4),
            novelty=None if result.novelty is None else round(result.novelty, 4),
            cut=result.cut,
            finished=result.finished,
            generation=result.generation,
            latency_ms=result.latency_ms,
        )


def has_gone(sink: Sink) -> bool:
    """Whether nobody will take results from it any more."""
    return isinstance(sink, JsonLines) and sink.lines.gone


def dropped(sinks: Iterable[Sink]) -> int:
    """Results that their readers did not take."""
    return sum(lines.dropped for lines in _lines(sinks))


def have_room(sinks: Iterable[Sink]) -> bool:
    """Whether every file of results can take more."""
    return all(lines.has_room for lines in _lines(sinks))


async def written(sinks: Iterable[Sink], within_s: float | None) -> None:
    """Wait until every result is written, or for so long."""
    deadline = None if within_s is None else time.monotonic() + within_s
    for lines in _lines(sinks):
        while lines.waiting and (deadline is None or time.monotonic() < deadline):
            await asyncio.sleep(_LOOK_S)


def _lines(sinks: Iterable[Sink]) -> Iterator[LineWriter]:
    return (sink.lines for sink in sinks if isinstance(sink, JsonLines))

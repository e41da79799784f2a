"""Where results go: JSON lines or a callback; for events on the broker see `event_sink`."""

from __future__ import annotations

import asyncio
import functools
import io
import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

import msgspec

from runtime_edge.base.line_writer import LineWriter
from runtime_edge.errors import UsageError
from runtime_edge.formats.results import WindowResult

_LOG = logging.getLogger(__name__)
_GRACE_S = 2.0
"""How long a device that ends waits for unwritten results, s."""
_LOOK_S = 0.01
Callback = Callable[[WindowResult], None]


class Sink(Protocol):
    """Takes results; must not block for long."""

    def put(self, result: WindowResult) -> None:
        """Take one result."""

    def close(self) -> None:
        """Call when no more results come."""


class JsonLines:
    """Writes one JSON object per line to a file, to a named pipe, or to standard output for `-`.

    On a terminal the embedding is left out: its hundreds of numbers would hide the rest.
    Writes in a thread of its own: a reader who stops reading loses results, which are counted, but holds up nobody.
    """

    def __init__(self, path: str) -> None:
        """Raises UsageError if the path cannot be written."""
        self._name, self._for_people = f"results {path}", path == "-" and sys.stdout is not None and sys.stdout.isatty()
        self.lines = LineWriter(_opener(path), self._complain, reopens=_is_named_pipe(path))
        """Knows how many lines wait and how many were lost."""

    def put(self, result: WindowResult) -> None:
        """Write one line soon."""
        self.lines.put(msgspec.json.encode(_without_embedding(result) if self._for_people else result) + b"\n")

    def close(self) -> None:
        """Write what waits, if somebody reads it, and close the file (not standard output)."""
        self.lines.close(_GRACE_S)

    def _complain(self, what: str) -> None:
        _LOG.warning("%s: %s", self._name, what)


def _without_embedding(result: WindowResult) -> dict[str, Any]:
    return {name: value for name, value in msgspec.to_builtins(result).items() if name != "embedding"}


def _opener(path: str) -> Callable[[], Any]:
    """A function that opens a destination of results; a regular file is opened right away."""
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
        return opened  # opening it waits for a reader
    try:
        file = opened()
    except OSError as exc:
        raise UsageError(f"results {path}: cannot be written ({exc.strerror})") from None
    return lambda: file


def _is_named_pipe(path: str) -> bool:
    return path != "-" and Path(path).is_fifo()


class CallbackSink:
    """Passes each result to a function."""

    def __init__(self, callback: Callback) -> None:
        self._callback = callback

    def put(self, result: WindowResult) -> None:
        """Call the function."""
        self._callback(result)

    def close(self) -> None:
        """Do nothing: there is nothing to close."""


def all_gone(sinks: Iterable[Sink]) -> bool:
    """Whether all readers of results are gone."""
    readers = list(_lines(sinks))
    return bool(readers) and all(lines.gone for lines in readers) and not any(map(_takes_all, sinks))


def _takes_all(sink: Sink) -> bool:
    return isinstance(sink, CallbackSink)


def dropped(sinks: Iterable[Sink]) -> int:
    """The number of results that their readers did not take."""
    return sum(lines.dropped for lines in _lines(sinks))


def have_room(sinks: Iterable[Sink]) -> bool:
    """Whether every file of results can take more."""
    return all(lines.has_room for lines in _lines(sinks))


async def written(sinks: Iterable[Sink], within_s: float | None) -> None:
    """Wait until every result is written, at most `within_s`."""
    deadline = None if within_s is None else time.monotonic() + within_s
    for lines in _lines(sinks):
        while lines.waiting and (deadline is None or time.monotonic() < deadline):
            await asyncio.sleep(_LOOK_S)


def _lines(sinks: Iterable[Sink]) -> Iterator[LineWriter]:
    return (sink.lines for sink in sinks if isinstance(sink, JsonLines))

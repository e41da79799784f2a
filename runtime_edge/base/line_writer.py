"""Writes lines for a reader that may stop reading: a file, pipe or terminal that blocks must not block the program."""

from __future__ import annotations

import select
import threading
import time
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, Protocol

MAX_WAITING = 256
_LOOK_S = 0.002


class _File(Protocol):
    """A file opened for unbuffered writing, so that a failed write leaves nothing behind."""

    def fileno(self) -> int:
        """The file descriptor."""

    def write(self, data: Any, /) -> int | None:
        """Write some of the data; None if there is no room now."""

    def close(self) -> None:
        """Close the file, unless it belongs to somebody else."""


class LineWriter:
    """Writes lines in a thread of its own, in order; lines beyond the queue's limit are dropped and counted.

    Args:
        open_file: opens the destination; called in the thread, where it may block, and again after the reader of a
            named pipe has gone.
        complain: called once for each problem, in any thread, with a text that continues after the destination's name.
        reopens: whether another reader may come after one has gone.
    """

    def __init__(
        self, open_file: Callable[[], _File], complain: Callable[[str], object], reopens: bool = False
    ) -> None:
        self._open_file, self._complain, self._reopens = open_file, complain, reopens
        self._queue: SimpleQueue[bytes | None] = SimpleQueue()
        self._file: _File | None = None
        self._put = self._done = self._refused = self._lost = 0
        self._full = self._failing = self._torn = False
        self.gone = False
        """Whether the reader has gone for good."""
        self._thread = threading.Thread(target=self._run, name="line writer", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """The number of lines not written yet."""
        return self._put - self._done

    @property
    def has_room(self) -> bool:
        """Whether another line would be accepted."""
        return self.waiting < MAX_WAITING or self.gone

    @property
    def dropped(self) -> int:
        """The number of lines that were not written and will not be."""
        return self._refused + self._lost

    def put(self, line: bytes) -> None:
        """Queue a line, including its line end; never blocks. Only one thread may call it."""
        if self.waiting >= MAX_WAITING:
            self._refused += 1
            if not self._full:
                self._complain("is not read, or cannot be written, as fast as lines come: they are dropped and counted")
            self._full = True
            return
        self._put += 1
        self._queue.put(line)

    def flush(self, within_s: float) -> None:
        """Wait until every line is written, at most `within_s`."""
        deadline = time.monotonic() + within_s
        while self.waiting and time.monotonic() < deadline:
            time.sleep(_LOOK_S)

    def close(self, within_s: float) -> None:
        """Accept no more lines; those still waiting have `within_s` to be written."""
        self._queue.put(None)
        self._thread.join(within_s)
        if self._thread.is_alive():
            self._refused += self.waiting
        if self.dropped:
            self._complain(f"{self.dropped} lines were dropped")

    def _run(self) -> None:
        while (line := self._queue.get()) is not None:
            if self.gone or not self._written(line):
                self._lost += 1
            self._done += 1
        if self._file is not None:
            self._file.close()

    def _written(self, line: bytes) -> bool:
        sent = 0
        try:
            if self._file is None:
                self._file = self._open_file()
            data = memoryview(b"\n" + line if self._torn else line)  # after a partial line, begin a new one
            while sent < len(data):
                written = self._file.write(data[sent:])
                if written is None:
                    select.select([], [self._file], [])
                else:
                    sent += written
        except BrokenPipeError:
            self._reader_has_gone()
            return False
        except OSError as exc:
            self._torn = self._torn or sent > 0
            if not self._failing:
                self._complain(f"cannot be written ({exc.strerror or exc}): lines are dropped until it can")
            self._failing = True
            return False
        self._failing = self._torn = False
        return True

    def _reader_has_gone(self) -> None:
        if not self._reopens:
            self.gone = True
            self._complain("its reader has gone")
        elif self._file is not None:
            self._file.close()
            self._file = None

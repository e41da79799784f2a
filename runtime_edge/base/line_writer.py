"""Lines for a reader that may stop reading: a file, pipe or terminal that blocks must not block the program."""

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
    """Opened for writing without a buffer, so that a failed write leaves nothing behind."""

    def fileno(self) -> int:
        """Its descriptor."""

    def write(self, data: Any, /) -> int | None:
        """Write some of it; None when it has no room now."""

    def close(self) -> None:
        """Close it, unless it is somebody else's."""


class LineWriter:
    """Writes lines in a thread of its own, in order; those that find too many waiting are dropped and counted.

    Args:
        open_file: opens what is written to, in the thread, where it may block; and again where the reader of a named
            pipe has gone.
        complain: called once for each trouble, in any thread: what is wrong, after the name of what is written.
        reopens: whether another reader may come when one has gone.
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
        """Lines that are not written yet."""
        return self._put - self._done

    @property
    def has_room(self) -> bool:
        """Whether another line would be taken."""
        return self.waiting < MAX_WAITING or self.gone

    @property
    def dropped(self) -> int:
        """Lines that were not written and will not be."""
        return self._refused + self._lost

    def put(self, line: bytes) -> None:
        """Take a line, with its end; never blocks. One thread calls it."""
        if self.waiting >= MAX_WAITING:
            self._refused += 1
            if not self._full:
                self._complain("is not read, or cannot be written, as fast as lines come: they are dropped and counted")
            self._full = True
            return
        self._put += 1
        self._queue.put(line)

    def flush(self, within_s: float) -> None:
        """Wait until every line is written, at most for so long."""
        deadline = time.monotonic() + within_s
        while self.waiting and time.monotonic() < deadline:
            time.sleep(_LOOK_S)

    def close(self, within_s: float) -> None:
        """No more lines come: those that wait have so long to be written."""
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
            data = memoryview(b"\n" + line if self._torn else line)  # what follows half a line begins a new one
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

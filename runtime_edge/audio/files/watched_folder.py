"""A watched folder: each recording is read once, when it is complete, even if the program restarts.

    folder = WatchedFolder(Path("incoming/"), Path("state/watched.jsonl"))
    for path in folder.recordings(look): ...

A recording is complete when its size and modification time have not changed for a while. What was read is remembered
by path, size and time, so a file that is overwritten counts as another recording. One that was being read when the
program ended is read again from its beginning.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from runtime_edge.audio.files.folder import recordings_below, unreadable
from runtime_edge.base.files import write_atomic
from runtime_edge.base.text import shown
from runtime_edge.errors import SourceError

LOOK_S, STILL_S = 1.0, 3.0
_LOG = logging.getLogger(__name__)
_Version = tuple[int, int]
"""Size in bytes and time of the last change, ns since 1970."""


class WatchedFolder:
    """The recordings of a folder that have not been read yet."""

    def __init__(self, directory: Path, memory: Path, monotonic: Callable[[], float] = time.monotonic) -> None:
        """What was read is remembered in the file `memory`. Raises SourceError if `directory` is not a folder."""
        if not directory.is_dir():
            raise SourceError(f"{shown(directory)}: no such directory: make it, or watch another one")
        self._directory, self._memory, self._monotonic = directory, memory, monotonic
        self._seen: dict[Path, tuple[_Version, float]] = {}
        self._told: set[Path] = set()
        self._read = _remembered(memory)
        # Recordings that are gone need not be remembered.
        self._read = {name: version for name, version in self._read.items() if os.path.lexists(directory / name)}
        lines = b"".join(_line(name, version) for name, version in self._read.items())
        self._keep(lambda: write_atomic(memory, lines))

    def recordings(self, look: Callable[[], object]) -> Iterator[Path]:
        """Complete recordings in the order of their times, for ever; `look` is called to wait before the next look.

        A recording is remembered as read when the next one is asked for.
        """
        while True:
            for path, version in self._complete():
                if _version(path) != version:
                    continue  # the next look sees what has become of it
                yield path
                self._remember(path, version)
            look()

    def _complete(self) -> list[tuple[Path, _Version]]:
        now, before, self._seen = self._monotonic(), self._seen, {}
        complete = []
        for path in recordings_below(self._directory, self._unreadable):
            version = _version(path)
            if version is None or self._read.get(self._name(path)) == version:
                continue
            known, since = before.get(path, (version, now))
            self._seen[path] = (version, since if known == version else now)
            if now - self._seen[path][1] >= STILL_S:
                complete.append((path, version))
        return sorted(complete, key=lambda one: (one[1][1], os.fsencode(one[0])))

    def _remember(self, path: Path, version: _Version) -> None:
        self._read[self._name(path)] = version

        def append() -> None:
            with self._memory.open("ab") as file:
                file.write(_line(self._name(path), version))
                file.flush()
                os.fsync(file.fileno())

        self._keep(append)

    def _keep(self, write: Callable[[], object]) -> None:
        """Write to the memory file; a full disk must not end the capture."""
        try:
            write()
        except OSError as exc:
            _LOG.warning("%s: cannot be written (%s): after a restart recordings are read again", self._memory, exc)

    def _unreadable(self, error: OSError) -> None:
        """Log that a directory cannot be listed: once, not at every look."""
        path = Path(error.filename)
        if path not in self._told:
            self._told.add(path)
            unreadable(error)

    def _name(self, path: Path) -> str:
        return path.relative_to(self._directory).as_posix()


def _version(path: Path) -> _Version | None:
    """A file's version; None if it has just gone."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns


def _line(name: str, version: _Version) -> bytes:
    # Python keeps the bytes of a name that is not UTF-8 in this form, and so does JSON.
    return json.dumps([name, *version]).encode() + b"\n"


def _remembered(memory: Path) -> dict[str, _Version]:
    """What the memory file says; a damaged line, such as the last one after a power cut, is skipped and logged."""
    if not memory.exists():
        return {}
    found: dict[str, _Version] = {}
    for number, line in enumerate(memory.read_bytes().splitlines(), 1):
        try:
            name, size, time_ns = json.loads(line)
            found[str(name)] = (int(size), int(time_ns))
        except (ValueError, TypeError):
            _LOG.warning("%s: line %d is damaged: that recording is read again", memory, number)
    return found

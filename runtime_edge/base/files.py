"""Bounded reads, atomic writes, and a lock that gives a directory to one process at a time."""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from runtime_edge.errors import FormatError, UsageError

_LOCK_PATIENCE_S = 1.0
"""Another process may hold the lock for a moment, in `is_locked`."""


def read_bounded(path: Path, limit_bytes: int, error: type[FormatError] = FormatError) -> bytes:
    """Read a whole regular file of at most `limit_bytes`; anything else raises `error` naming the file."""
    try:
        size = path.stat().st_size
        if not path.is_file():
            raise error(f"{path}: not a regular file")
        if size > limit_bytes:
            raise error(f"{path}: {size} bytes, more than the {limit_bytes} allowed for this kind of file")
        with path.open("rb") as file:
            data = file.read(limit_bytes + 1)
    except OSError as exc:
        raise error(f"{path}: cannot be read ({exc.strerror or exc})") from exc
    if len(data) > limit_bytes:
        raise error(f"{path}: grew beyond the {limit_bytes} bytes allowed while it was read")
    return data


def read_text(path: Path, limit_bytes: int, error: type[FormatError] = FormatError) -> str:
    """Read a UTF-8 file of at most `limit_bytes`, without the byte order mark that Windows adds. Raises `error`."""
    data = read_bounded(path, limit_bytes, error)
    if b"\0" in data:
        raise error(f"{path}: not UTF-8 text, but perhaps UTF-16; save it as UTF-8")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        line = data.count(b"\n", 0, exc.start) + 1
        raise error(f"{path}: line {line} is not UTF-8 text; save it as UTF-8") from None


def write_atomic(path: Path, data: bytes, mode: int = 0o644, durable: bool = True) -> None:
    """Write `data` to `path` so that a reader, or a power cut, sees the old file or the new one, never a partial one.

    Without `durable` a power cut may leave an empty file, but the call does not wait for the disk. A path that is not a
    file, such as /dev/null or a pipe, is written to, not replaced. Raises OSError naming a file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and not (path.is_file() or path.is_dir()):
        path.write_bytes(data)
        return
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        os.chmod(name, mode)
        os.replace(name, path)
    except BaseException as exc:
        Path(name).unlink(missing_ok=True)
        if isinstance(exc, OSError):
            exc.filename = exc.filename or str(path)  # a full disk does not say which file it was
        raise
    if durable:
        fsync_directory(path.parent)


def make_private(directory: Path) -> None:
    """Create a missing state directory, for its owner alone; an existing one keeps its permissions."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    directory.mkdir(mode=0o700, exist_ok=True)


def fsync_directory(path: Path) -> None:
    """Make renames inside `path` durable (a no-op where directories cannot be opened)."""
    if hasattr(os, "O_DIRECTORY"):
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def locked(path: Path, what: str, patience_s: float = _LOCK_PATIENCE_S) -> Iterator[None]:
    """Hold a lock file; the kernel releases the lock however the process ends.

    Raises UsageError with `what` if another process holds it for longer than `patience_s`.
    """
    with _lock_file(path, os.O_RDWR | os.O_CREAT) as descriptor:  # network file systems lock what is open for writing
        deadline = time.monotonic() + patience_s
        while not _take_lock(descriptor):
            if time.monotonic() > deadline:
                raise UsageError(f"{path.parent}: {what}")
            time.sleep(0.05)
        yield


def is_locked(path: Path) -> bool:
    """Whether a running process holds the lock."""
    if not path.exists():
        return False
    with _lock_file(path, os.O_RDONLY) as descriptor:
        return not _take_lock(descriptor)


@contextlib.contextmanager
def _lock_file(path: Path, flags: int) -> Iterator[int]:
    descriptor = os.open(path, flags, 0o644)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _take_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True

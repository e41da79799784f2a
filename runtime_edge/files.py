"""Reading with a bound and writing without leaving halves."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from runtime_edge.errors import FormatError


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


def write_atomic(path: Path, data: bytes, mode: int = 0o644) -> None:
    """Write `data` to `path` so that a reader or a power cut sees the old file or the new one, never a half."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, mode)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    fsync_directory(path.parent)


def fsync_directory(path: Path) -> None:
    """Make renames inside `path` durable (a no-op where directories cannot be opened)."""
    if hasattr(os, "O_DIRECTORY"):
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

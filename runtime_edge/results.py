"""What a user gets out: one result for every window, to the sinks that were asked for."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO, Protocol

import msgspec

from runtime_edge.errors import UsageError


class WindowResult(msgspec.Struct, frozen=True, kw_only=True):
    """One window, as it goes to JSON lines, the event subject and callbacks."""

    window: int
    time: float
    """Capture time of the window's end, seconds since the epoch."""
    embedding: list[float]
    uncertainty: float
    """Normalised to [0, 1]; 1 while the memory is cold."""
    cut: str
    encoding: str
    probe: bool
    generation: int
    """Of the bundle that made the embedding."""
    finished: str
    """Where: "server", "device" (the whole encoder ran here) or "fallback" (the server did not answer in time)."""
    latency_ms: float
    """From the end of the window to the embedding."""
    device_ms: float
    network_ms: float
    server_ms: float
    frame_bytes: int
    bandwidth_mbps: float
    rtt_ms: float
    cpu: float


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

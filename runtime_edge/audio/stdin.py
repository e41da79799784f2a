"""Raw PCM from a pipe."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from runtime_edge.audio.audio_block import Counters
from runtime_edge.audio.files.recognise import decisive_bytes, recognised
from runtime_edge.audio.live import FrameQueue
from runtime_edge.audio.stream import BLOCK_SECONDS, SourceAudio
from runtime_edge.errors import SourceError


def read_pcm16(fd: int, rate_hz: int, channels: int, counters: Counters) -> Iterator[SourceAudio]:
    """Read signed 16-bit little-endian interleaved PCM from a file descriptor until it ends.

    Bytes of an incomplete last frame count as one bad sample.

    Raises:
        SourceError: a terminal, an empty stream, or one that starts like an audio file.
    """
    if os.isatty(fd):
        raise SourceError("stdin: is a terminal: pipe raw 16-bit PCM into it, or name a file")
    frame_bytes = 2 * channels
    block_bytes = frame_bytes * max(1, round(rate_hz * BLOCK_SECONDS))
    pending, starts, ended = b"", True, False
    while not ended:
        data = _read(fd, block_bytes)
        pending, ended = pending + data, not data
        if starts and len(pending) < decisive_bytes(pending) and not ended:
            continue  # wait for more: the first bytes may identify a container
        if starts and (container := recognised(pending)):
            raise SourceError(f"stdin: holds {container}, not raw 16-bit PCM: name the file instead of -")
        if whole := len(pending) - len(pending) % frame_bytes:
            yield SourceAudio(_decode(pending[:whole], channels), rate_hz, starts)
            pending, starts = pending[whole:], False
    if pending:
        counters.bad_samples += 1
    if starts:
        raise SourceError("stdin: ended before the first sample: check the program that writes into the pipe")


def capture_pcm16(fd: int, rate_hz: int, channels: int, queue: FrameQueue, counters: Counters) -> None:
    """Start a thread that moves PCM from `fd` into `queue` as it arrives.

    The thread ends with the stream; a blocked read cannot be interrupted, so the thread is a daemon.
    """

    def run() -> None:
        error: SourceError | None = None
        try:
            for raw in read_pcm16(fd, rate_hz, channels, counters):
                queue.put(raw.frames)
        except SourceError as exc:
            error = exc
        finally:
            queue.close(error)

    threading.Thread(target=run, name="stdin capture", daemon=True).start()


def _read(fd: int, size: int) -> bytes:
    # Not sys.stdin.buffer: a thread blocked in it holds a lock that the interpreter needs when it exits.
    try:
        return os.read(fd, size)
    except OSError as exc:
        raise SourceError(f"stdin: cannot be read ({exc.strerror}): open it or name a file") from exc


def _decode(data: bytes, channels: int) -> NDArray[np.float32]:
    pcm = np.frombuffer(data, "<i2").reshape(-1, channels)
    frames: NDArray[np.float32] = pcm.astype(np.float32)
    frames /= 32768
    return frames

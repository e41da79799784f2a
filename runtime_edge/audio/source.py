"""One way to open every source of audio."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

from runtime_edge.audio.audio_files import MAX_CHANNELS, MAX_RATE_HZ, MIN_RATE_HZ, read_directory, read_file
from runtime_edge.audio.block import SYSTEM_CLOCK, AudioBlock, Clock, Counters
from runtime_edge.audio.live import FrameQueue, IdleWaiter, Waiter, read_ahead
from runtime_edge.audio.microphone import Microphone
from runtime_edge.audio.stdin import capture_pcm16, read_pcm16
from runtime_edge.audio.stream import BLOCK_SECONDS, SourceAudio, to_blocks
from runtime_edge.errors import SourceError, UsageError


def open_source(
    spec: str,
    sample_rate: int,
    realtime: bool = False,
    *,
    loop: bool = False,
    speed: float = 1.0,
    stdin_rate: int | None = None,
    stdin_channels: int = 1,
    stdin_fd: int = 0,
    queue_seconds: float = 10.0,
    block_s: float = BLOCK_SECONDS,
    counters: Counters | None = None,
    clock: Clock = SYSTEM_CLOCK,
    waiter: Waiter | None = None,
) -> Generator[AudioBlock, None, None]:
    """Open a source; returns a generator of its audio as mono float32 blocks at `sample_rate`. `close()` stops it.

    | spec | what it is | too slow a reader |
    |---|---|---|
    | `mic`, `mic:NAME`, `mic:NUMBER` | the default or a named input, always live | oldest audio dropped |
    | a file | WAV, FLAC or Ogg (whatever libsndfile decodes) | the file waits |
    | a directory | every .wav, .flac, .ogg below it, sorted, one stream; bad ones skipped | the files wait |
    | `-` | raw 16-bit little-endian PCM on stdin | the pipe waits; live (`realtime`): dropped |

    Capture time is anchored to the wall clock once, at the first samples, and advanced by the samples since: later
    jumps of the clock change nothing. A file that is not `realtime` runs ahead of it.

    Args:
        spec: see the table.
        sample_rate: rate of the blocks, Hz.
        realtime: pace files as a microphone would; treat stdin as live.
        loop: start files again at their end, for ever.
        speed: with `realtime`, play files this many times as fast as real time.
        stdin_rate: rate of the PCM on stdin, Hz (default: `sample_rate`).
        stdin_channels: interleaved channels on stdin.
        stdin_fd: the file descriptor read for `-`.
        queue_seconds: audio a live source keeps for a reader that is late; at least twice the window.
        block_s: length of the blocks of a file, about; those of live sources are of 0.1 s.
        counters: what is counted; a fresh one when not given.
        clock: the time and the sleep that paces files.
        waiter: how whoever iterates waits for a microphone or for stdin; by default it does nothing else meanwhile.

    Raises:
        UsageError: an option out of range or not for this source.
        SourceError: nothing at `spec`, or (also while reading) audio that cannot be read or has ended badly.
        MissingExtra: the source needs a library that is not installed.
    """
    _check_options(spec, sample_rate, realtime, loop, speed, queue_seconds)
    counters, waiter = counters or Counters(), waiter or IdleWaiter()
    if _is_microphone(spec):
        microphone = Microphone(spec[4:], queue_seconds, counters, clock, waiter)
        return to_blocks(microphone.read(), sample_rate, counters, microphone.queue.anchor_ns, clock, None)
    if spec == "-":
        rate_hz = sample_rate if stdin_rate is None else stdin_rate
        raws, anchor = _open_stdin(
            stdin_fd, rate_hz, stdin_channels, queue_seconds if realtime else None, counters, clock, waiter
        )
        return to_blocks(raws, sample_rate, counters, anchor, clock, None)
    pace, raws = speed if realtime else None, _open_path(Path(spec), loop, counters, block_s)
    return to_blocks(raws, sample_rate, counters, clock.wall_ns, clock, pace)


def _open_stdin(
    fd: int, rate_hz: int, channels: int, live_s: float | None, counters: Counters, clock: Clock, waiter: Waiter
) -> tuple[Iterator[SourceAudio], Callable[[], int]]:
    """PCM as it comes, of which `live_s` seconds are kept for a late reader (None: the pipe waits for the reader); and
    what says when its first sample was captured.
    """
    _check_range("stdin rate", rate_hz, MIN_RATE_HZ, MAX_RATE_HZ)
    _check_range("stdin channels", channels, 1, MAX_CHANNELS)
    if live_s is None:
        return read_ahead(read_pcm16(fd, rate_hz, channels, counters), waiter), clock.wall_ns
    queue = FrameQueue(rate_hz, live_s, counters, clock, waiter)
    capture_pcm16(fd, rate_hz, channels, queue, counters)
    return queue.read(), queue.anchor_ns


def _open_path(path: Path, loop: bool, counters: Counters, block_s: float) -> Iterator[SourceAudio]:
    if path.is_dir():
        return read_directory(path, loop, counters, block_s)
    if not path.exists():
        raise SourceError(f"{path}: no such file or directory: give mic, an audio file, a directory or -")
    if not path.is_file():
        raise SourceError(f"{path}: neither a file nor a directory: to read a pipe, redirect it and give -")
    return _repeat(path, block_s) if loop else read_file(path, block_s)


def _repeat(path: Path, block_s: float) -> Iterator[SourceAudio]:
    while True:
        yield from read_file(path, block_s)


def _is_microphone(spec: str) -> bool:
    return spec == "mic" or spec.startswith("mic:")


def _check_options(spec: str, sample_rate: int, realtime: bool, loop: bool, speed: float, queue_seconds: float) -> None:
    if not spec:
        raise UsageError("source: is empty: give mic, an audio file, a directory or -")
    _check_range("sample rate", sample_rate, MIN_RATE_HZ, MAX_RATE_HZ)
    if not (math.isfinite(speed) and speed > 0):
        raise UsageError(f"speed {speed}: must be above 0")
    if not (math.isfinite(queue_seconds) and queue_seconds > 0):
        raise UsageError(f"queue {queue_seconds} s: must be above 0")
    if loop and (spec == "-" or _is_microphone(spec)):
        raise UsageError(f"source {spec!r} cannot be looped: loop is for files and directories")
    if speed != 1.0 and (not realtime or spec == "-" or _is_microphone(spec)):
        raise UsageError(f"speed {speed:g} is for files played in real time (source {spec!r})")


def _check_range(name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise UsageError(f"{name} {value}: must be from {low} to {high}")

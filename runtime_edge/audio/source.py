"""One way to open every source of audio."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import msgspec

from runtime_edge.audio.audio_block import SYSTEM_CLOCK, AudioBlock, Clock, Counters
from runtime_edge.audio.file_decoder import (
    MAX_CHANNELS,
    MAX_RATE_HZ,
    MIN_RATE_HZ,
    Faults,
    read_again_and_again,
    read_directory,
    read_file,
)
from runtime_edge.audio.files.watched_folder import LOOK_S, WatchedFolder
from runtime_edge.audio.live import FrameQueue, IdleWaiter, Waiter, read_ahead
from runtime_edge.audio.microphone import Microphone
from runtime_edge.audio.stdin import capture_pcm16, read_pcm16
from runtime_edge.audio.stream import BLOCK_SECONDS, Mixer, SourceAudio, to_blocks
from runtime_edge.base.text import shown
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
    channel: str = "mean",
    queue_seconds: float = 10.0,
    block_s: float = BLOCK_SECONDS,
    counters: Counters | None = None,
    clock: Clock = SYSTEM_CLOCK,
    waiter: Waiter | None = None,
) -> Generator[AudioBlock, None, None]:
    """Open a source; returns a generator of its audio as mono float32 blocks at `sample_rate`. `close()` stops it.

    | spec | source | if the reader is too slow |
    |---|---|---|
    | `mic`, `mic:NAME`, `mic:NUMBER` | the default or a named input, always live | oldest audio dropped |
    | a file | WAV, FLAC, Ogg, MP3 (whatever libsndfile decodes), as far as it can be read | the file waits |
    | a directory | every recording below it that is not hidden, sorted; bad ones skipped | the files wait |
    | `-` | raw 16-bit little-endian PCM on stdin | the pipe waits; live (`realtime`): dropped |

    Args:
        spec: see the table.
        sample_rate: rate of the blocks, Hz.
        realtime: pace files as a microphone would; treat stdin as live.
        loop: restart files at their end, for ever.
        speed: with `realtime`, play files this many times as fast as real time.
        stdin_rate: rate of the PCM on stdin, Hz (default: `sample_rate`).
        stdin_channels: interleaved channels on stdin.
        stdin_fd: the file descriptor read for `-`.
        channel: which one to take of several: their `mean`, the `loudest`, or one by its number, from 1 on.
        queue_seconds: how much audio a live source keeps for a late reader; at least twice the window.
        block_s: approximate length of the blocks of a file; those of live sources are 0.1 s long.
        counters: where things are counted; a fresh one by default.
        clock: the time and the sleep that paces files.
        waiter: how the iterating code waits for a microphone or for stdin; by default it does nothing else meanwhile.

    Raises:
        UsageError: an option is out of range or does not apply to this source.
        SourceError: nothing at `spec`, or (also while reading) audio that cannot be read or has ended badly.
        MissingExtra: the source needs a library that is not installed.
    """
    _check_options(spec, sample_rate, realtime, loop, speed, queue_seconds)
    counters, mixer, waiter = counters or Counters(), Mixer(channel), waiter or IdleWaiter()
    if _is_microphone(spec):
        microphone = Microphone(spec[4:], queue_seconds, counters, clock, waiter, mixer.least_channels)
        return to_blocks(microphone.read(), sample_rate, counters, microphone.queue.anchor_ns, clock, None, mixer)
    if spec == "-":
        _check_channel(channel, mixer.least_channels, stdin_channels)
        rate_hz, live_s = sample_rate if stdin_rate is None else stdin_rate, queue_seconds if realtime else None
        raws, anchor_ns = _open_stdin(stdin_fd, rate_hz, stdin_channels, live_s, counters, clock, waiter)
        return to_blocks(raws, sample_rate, counters, anchor_ns, clock, None, mixer)
    pace, raws = speed if realtime else None, _open_path(Path(spec), loop, counters, block_s, mixer.least_channels)
    return to_blocks(raws, sample_rate, counters, clock.wall_ns, clock, pace, mixer)


def _open_stdin(
    fd: int, rate_hz: int, channels: int, live_s: float | None, counters: Counters, clock: Clock, waiter: Waiter
) -> tuple[Iterator[SourceAudio], Callable[[], int]]:
    """PCM as it arrives, of which `live_s` seconds are kept for a late reader (None: the pipe waits for the reader),
    and a function that says when its first sample was captured.
    """
    _check_range("stdin rate", rate_hz, MIN_RATE_HZ, MAX_RATE_HZ)
    if live_s is None:
        return read_ahead(read_pcm16(fd, rate_hz, channels, counters), waiter), clock.wall_ns
    queue = FrameQueue(rate_hz, live_s, counters, clock, waiter)
    capture_pcm16(fd, rate_hz, channels, queue, counters)
    return queue.read(), queue.anchor_ns


def _open_path(
    path: Path, loop: bool, counters: Counters, block_s: float, least_channels: int
) -> Iterator[SourceAudio]:
    if path.is_dir():
        return read_directory(path, loop, counters, block_s, least_channels)
    if not path.exists():
        raise SourceError(f"{shown(path)}: no such file or directory: give mic, an audio file, a directory or -")
    if not path.is_file():
        raise SourceError(f"{shown(path)}: neither a file nor a directory: to read a pipe, redirect it and give -")
    if loop:
        return read_again_and_again(path, counters, block_s, least_channels)
    return read_file(path, block_s, Faults(counters), least_channels)


def open_watched(
    directory: Path,
    memory: Path,
    sample_rate: int,
    realtime: bool = False,
    *,
    speed: float = 1.0,
    channel: str = "mean",
    block_s: float = BLOCK_SECONDS,
    counters: Counters | None = None,
    clock: Clock = SYSTEM_CLOCK,
    waiter: Waiter | None = None,
) -> Generator[AudioBlock, None, None]:
    """Open the recordings that arrive in a directory, each once, when it is complete; the source never ends.

    What was read is remembered in the file `memory`. A recording that cannot be read is skipped, logged and counted.
    The other parameters are those of `open_source`. Raises UsageError and SourceError likewise, before iteration.
    """
    _check_options(str(directory), sample_rate, realtime, False, speed, 1.0)
    folder, mixer = WatchedFolder(directory, memory, clock.monotonic), Mixer(channel)
    counters = counters or Counters()
    pace, faults = speed if realtime else None, Faults(counters)

    def blocks_of(path: Path) -> Iterator[AudioBlock]:
        """Each recording gets a time line of its own."""
        raws = read_file(path, block_s, faults, mixer.least_channels)
        return to_blocks(raws, sample_rate, counters, clock.wall_ns, clock, pace, mixer)

    return _watched(folder, blocks_of, faults, waiter or IdleWaiter())


def _watched(
    folder: WatchedFolder, blocks_of: Callable[[Path], Iterator[AudioBlock]], faults: Faults, waiter: Waiter
) -> Generator[AudioBlock, None, None]:
    for path in folder.recordings(lambda: waiter.wait(lambda: False, LOOK_S)):
        last = None
        try:
            for block in blocks_of(path):
                if last is not None:
                    yield last
                last = block
        except SourceError as exc:
            faults.skipped(path, exc)
        if last is not None:
            yield msgspec.structs.replace(last, ends=True)


def is_live(spec: str, realtime: bool) -> bool:
    """Whether a source should deliver audio all the time, so that silence from it is a fault."""
    return _is_microphone(spec) or (spec == "-" and realtime)


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


def _check_channel(channel: str, least_channels: int, stdin_channels: int) -> None:
    _check_range("stdin channels", stdin_channels, 1, MAX_CHANNELS)
    if stdin_channels < least_channels:
        raise UsageError(f"channel {channel}: standard input has {stdin_channels} channels, see --stdin-channels")


def _check_range(name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise UsageError(f"{name} {value}: must be from {low} to {high}")

"""From raw frames of any rate and channel count to timed mono blocks."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Generator, Iterable, Iterator

import msgspec
import numpy as np
from numpy.typing import NDArray

from runtime_edge.audio.audio_block import AudioBlock, Clock, Counters, Recording
from runtime_edge.audio.resample import Resampler
from runtime_edge.audio.sample_check import SampleCheck
from runtime_edge.errors import UsageError

_LOG = logging.getLogger(__name__)

BLOCK_SECONDS = 0.1
STALL_SECONDS = 2.0
"""A live source that delivers nothing for longer leaves a gap; a wall clock that is further off than this was set."""
_STEP_NS = round(STALL_SECONDS * 1e9)
_HALF_LIFE_S = 10.0
_LOOK_S = 1.0
"""How often the wall clock is checked."""


class SourceAudio(msgspec.Struct, frozen=True):
    """Frames as a source delivers them.

    Attributes:
        frames: float32[n, channels], any values.
        rate_hz: their sample rate.
        starts: whether they start anew instead of continuing the previous frames (a new file, or after a gap).
        gap_frames: how many frames are missing before these.
        captured_at: when a live source delivered them, monotonic seconds.
        recording: the file they come from; None for live sources and pipes.
    """

    frames: NDArray[np.float32]
    rate_hz: int
    starts: bool
    gap_frames: int = 0
    captured_at: float | None = None
    recording: Recording | None = None


class Mixer:
    """Mixes many channels down to one: their mean, one of them (a number from 1 on), or the loudest.

    `loudest` switches to a channel with twice the energy of the current one over the last seconds, without offsets.

    Raises:
        UsageError: `channel` is none of these.
    """

    def __init__(self, channel: str = "mean") -> None:
        self._number = int(channel) if channel.isdecimal() else None
        if self._number == 0 or not (channel.isdecimal() or channel in ("mean", "loudest")):
            raise UsageError(f"channel {channel!r}: give mean, loudest, or a number: 1 is the first")
        self.least_channels = self._number or 1
        """How many channels a source must have."""
        self.averages, self._loudest = channel == "mean", channel == "loudest"
        self._energy: NDArray[np.float64] = np.zeros(0)
        self._chosen = 0

    def restart(self) -> None:
        """Begin another recording, with channels of its own."""
        self._energy, self._chosen = np.zeros(0), 0

    def mix(self, frames: NDArray[np.float32], rate_hz: int) -> NDArray[np.float32]:
        """Mix clean float32[n, channels] to float32[n]."""
        channels = frames.shape[1]
        if channels == 1:
            return np.ascontiguousarray(frames[:, 0])
        if self._loudest:
            self._choose(frames, rate_hz)
            return np.ascontiguousarray(frames[:, self._chosen])
        if self._number is not None:
            return np.ascontiguousarray(frames[:, self._number - 1])
        return np.asarray(frames.mean(axis=1, dtype=np.float32))

    def _choose(self, frames: NDArray[np.float32], rate_hz: int) -> None:
        if self._energy.size != frames.shape[1]:
            self._energy, self._chosen = np.zeros(frames.shape[1]), 0
        self._energy *= 0.5 ** (len(frames) / (_HALF_LIFE_S * rate_hz))
        self._energy += frames.var(axis=0, dtype=np.float64) * len(frames)
        loudest = int(self._energy.argmax())
        if self._energy[loudest] > 2 * self._energy[self._chosen]:
            self._chosen = loudest


def to_mono(frames: NDArray[np.float32], counters: Counters) -> NDArray[np.float32]:
    """Clean float32[n, channels] and average the channels: float32[n] in [-1, 1], never NaN.

    NaN and infinite values become 0, values beyond [-1, 1] are clipped; both are counted.
    """
    frames, bad, clipped = clean(frames)
    counters.bad_samples += bad
    counters.clipped_samples += clipped
    return Mixer().mix(frames, 1)


def clean(frames: NDArray[np.float32]) -> tuple[NDArray[np.float32], int, int]:
    """The same float32[n, channels] if all values are in [-1, 1], else a cleaned copy; and how many values were NaN or
    infinite, and how many were clipped.
    """
    if not frames.size or _within_bounds(frames):
        return frames, 0, 0
    finite = np.isfinite(frames)
    frames = np.where(finite, frames, np.float32(0))
    clipped = int(np.count_nonzero(np.abs(frames) > 1.0))
    return np.clip(frames, -1.0, 1.0), int(frames.size - np.count_nonzero(finite)), clipped


def _within_bounds(frames: NDArray[np.float32]) -> bool:
    """Whether all values are in [-1, 1]; NaN is not, and `argmax` finds it first."""
    values = frames.reshape(-1)
    return bool(values[values.argmax()] <= 1.0 and values[values.argmin()] >= -1.0)


def to_blocks(
    raws: Iterable[SourceAudio],
    sample_rate: int,
    counters: Counters,
    anchor_ns: Callable[[], int],
    clock: Clock,
    pace: float | None,
    mixer: Mixer | None = None,
) -> Generator[AudioBlock, None, None]:
    """Mix, resample and time `raws`.

    Capture time is `anchor_ns()`, read when the first samples arrive, plus the duration of the samples since then. If
    the wall clock is set meanwhile, times follow it. With `pace` blocks come no sooner than from a microphone running
    `pace` times as fast as real time, and capture time runs as fast; a late reader never makes it wait, and nothing is
    dropped.
    """
    ns_per_sample = 1e9 / (sample_rate * (pace or 1.0))
    anchor, started, position, wall, looked_at = 0, 0.0, 0, WallClock(clock, counters), -math.inf
    for piece in _resampled(raws, sample_rate, counters, mixer or Mixer()):
        samples, gap = piece.samples, piece.gap
        if position == 0:
            anchor, started = anchor_ns(), clock.monotonic()
        start = position + gap
        position = start + samples.size
        if pace is not None:
            ready_at = started + position * ns_per_sample * 1e-9
            if (wait := ready_at - clock.monotonic()) > 0:
                clock.sleep(wait)
        else:
            ready_at = clock.monotonic() if piece.captured_at is None else piece.captured_at
        counters.blocks += 1
        counters.samples += samples.size
        counters.dropped_samples += gap
        if ready_at >= looked_at + _LOOK_S:
            looked_at = ready_at
            anchor += wall.step_ns()
        start_ns, end_ns = anchor + round(start * ns_per_sample), anchor + round(position * ns_per_sample)
        yield AudioBlock(samples, start_ns, end_ns, gap, ready_at, piece.begins)


class WallClock:
    """Notices when the wall clock is set, by comparing it with a clock that never jumps."""

    def __init__(self, clock: Clock, counters: Counters) -> None:
        self._clock, self._counters = clock, counters
        self._ahead_ns = self._now_ahead_ns()

    def step_ns(self) -> int:
        """By how much it was set since the last call; 0 for what may be a correction of its rate."""
        ahead_ns = self._now_ahead_ns()
        step_ns = ahead_ns - self._ahead_ns
        if abs(step_ns) < _STEP_NS:
            return 0
        self._ahead_ns = ahead_ns
        if not self._counters.clock_steps:
            _LOG.warning("the clock was changed by %+.1f s: the times of audio follow it from now on", step_ns / 1e9)
        self._counters.clock_steps += 1
        return step_ns

    def _now_ahead_ns(self) -> int:
        """How far the wall clock is ahead of the one that never jumps."""
        return self._clock.wall_ns() - round(self._clock.monotonic() * 1e9)


class _Piece(msgspec.Struct, frozen=True):
    """float32[m] with m >= 1, the samples missing before them, when they were captured, the recording they begin."""

    samples: NDArray[np.float32]
    gap: int
    captured_at: float | None
    begins: Recording | None


def _resampled(raws: Iterable[SourceAudio], sample_rate: int, counters: Counters, mixer: Mixer) -> Iterator[_Piece]:
    """Mix and resample; each recording has a filter of its own."""
    resampler: Resampler | None = None
    gap, captured_at, begins, check = 0, None, None, SampleCheck(counters, mixer.averages)
    try:
        for raw in raws:
            if resampler is None or raw.starts:
                if resampler is not None and (tail := resampler.finish()).size:
                    yield _Piece(tail, gap, captured_at, begins)
                    gap = 0
                if resampler is None or raw.recording is not None:
                    mixer.restart()
                    check.begin(None if raw.recording is None else raw.recording.name, raw.rate_hz)
                begins = raw.recording
                resampler = Resampler(raw.rate_hz, sample_rate)
                gap += round(raw.gap_frames * sample_rate / raw.rate_hz)
            captured_at = raw.captured_at
            frames, bad, clipped = clean(raw.frames)
            if bad or clipped:
                check.mended(bad, clipped, frames.shape[1])
            mono = mixer.mix(frames, raw.rate_hz)
            check.heard(frames, mono)
            if (samples := resampler.push(mono)).size:
                yield _Piece(samples, gap, captured_at, begins)
                gap, begins = 0, None
        if resampler is not None and (tail := resampler.finish()).size:
            yield _Piece(tail, gap, captured_at, begins)
    finally:
        check.end()

"""From raw frames of any rate and channel count to timed mono blocks."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator

import msgspec
import numpy as np
from numpy.typing import NDArray

from runtime_edge.audio.block import AudioBlock, Clock, Counters
from runtime_edge.audio.resample import Resampler

BLOCK_SECONDS = 0.1


class SourceAudio(msgspec.Struct, frozen=True):
    """Frames as a source delivers them.

    Attributes:
        frames: float32[n, channels], any values.
        rate_hz: their sample rate.
        starts: whether they do not continue the previous frames (a new file, or after a gap).
        gap_frames: frames missing before these.
        captured_at: when a live source delivered them, monotonic seconds.
        file: the audio file they are from; None for live sources and pipes.
    """

    frames: NDArray[np.float32]
    rate_hz: int
    starts: bool
    gap_frames: int = 0
    captured_at: float | None = None
    file: str | None = None


def to_mono(frames: NDArray[np.float32], counters: Counters) -> NDArray[np.float32]:
    """Clean float32[n, channels] and average the channels: float32[n] in [-1, 1], never NaN.

    NaN and infinite values become 0, values beyond [-1, 1] are clipped; both are counted.
    """
    if frames.size and not _within_bounds(frames):
        finite = np.isfinite(frames)
        counters.bad_samples += int(frames.size - np.count_nonzero(finite))
        frames = np.where(finite, frames, np.float32(0))
        counters.clipped_samples += int(np.count_nonzero(np.abs(frames) > 1.0))
        frames = np.clip(frames, -1.0, 1.0)
    if frames.shape[1] == 1:
        return np.ascontiguousarray(frames[:, 0])
    return np.asarray(frames.mean(axis=1, dtype=np.float32))


def _within_bounds(frames: NDArray[np.float32]) -> bool:
    """NaN is not, and it is what `argmax` finds first."""
    values = frames.reshape(-1)
    return bool(values[values.argmax()] <= 1.0 and values[values.argmin()] >= -1.0)


def to_blocks(
    raws: Iterable[SourceAudio],
    sample_rate: int,
    counters: Counters,
    anchor_ns: Callable[[], int],
    clock: Clock,
    pace: float | None,
) -> Generator[AudioBlock, None, None]:
    """Mix, resample and time `raws`.

    Capture time is `anchor_ns()`, read once when the first samples arrive, advanced by the samples
    since then: a wall clock that jumps later changes nothing. With `pace` the blocks come no sooner
    than they would from a microphone running `pace` times as fast as real time, and capture time runs
    as fast; a reader that is late is never waited for and nothing is dropped.
    """
    ns_per_sample = 1e9 / (sample_rate * (pace or 1.0))
    anchor, started, position = 0, 0.0, 0
    for samples, gap, captured_at, file in _resampled(raws, sample_rate, counters):
        if position == 0:
            anchor, started = anchor_ns(), clock.monotonic()
        start = position + gap
        position = start + samples.size
        if pace is not None:
            ready_at = started + position * ns_per_sample * 1e-9
            if (wait := ready_at - clock.monotonic()) > 0:
                clock.sleep(wait)
        else:
            ready_at = clock.monotonic() if captured_at is None else captured_at
        counters.blocks += 1
        counters.samples += samples.size
        counters.dropped_samples += gap
        start_ns, end_ns = anchor + round(start * ns_per_sample), anchor + round(position * ns_per_sample)
        yield AudioBlock(samples, start_ns, end_ns, gap, ready_at, file)


def _resampled(
    raws: Iterable[SourceAudio], sample_rate: int, counters: Counters
) -> Iterator[tuple[NDArray[np.float32], int, float | None, str | None]]:
    """Yield float32[m] with m >= 1, samples missing before them, when they were captured, the file that begins with
    them; each recording has its own filter.
    """
    resampler: Resampler | None = None
    gap, captured_at, file = 0, None, None
    for raw in raws:
        if resampler is None or raw.starts:
            if resampler is not None and (tail := resampler.finish()).size:
                yield tail, gap, captured_at, file
                gap = 0
            file = raw.file
            resampler = Resampler(raw.rate_hz, sample_rate)
            gap += round(raw.gap_frames * sample_rate / raw.rate_hz)
        captured_at = raw.captured_at
        if (samples := resampler.push(to_mono(raw.frames, counters))).size:
            yield samples, gap, captured_at, file
            gap, file = 0, None
    if resampler is not None and (tail := resampler.finish()).size:
        yield tail, gap, captured_at, file

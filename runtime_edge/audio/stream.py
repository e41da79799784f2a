"""From raw frames of any rate and channel count to timed mono blocks."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator

import msgspec
import numpy as np
from numpy.typing import NDArray

from runtime_edge.audio.block import Block, Clock, Counters
from runtime_edge.audio.resample import Resampler

BLOCK_SECONDS = 0.1


class Raw(msgspec.Struct, frozen=True):
    """Frames as a source delivers them.

    Attributes:
        frames: float32[n, channels], any values.
        rate_hz: their sample rate.
        starts: whether they do not continue the previous frames (a new file, or after a gap).
        gap_frames: frames missing before these.
    """

    frames: NDArray[np.float32]
    rate_hz: int
    starts: bool
    gap_frames: int = 0


def to_mono(frames: NDArray[np.float32], counters: Counters) -> NDArray[np.float32]:
    """Clean float32[n, channels] and average the channels: float32[n] in [-1, 1], never NaN.

    NaN and infinite values become 0, values beyond [-1, 1] are clipped; both are counted.
    """
    if frames.size and not (frames.max() <= 1.0 and frames.min() >= -1.0):  # NaN is neither
        finite = np.isfinite(frames)
        counters.bad_samples += int(frames.size - np.count_nonzero(finite))
        frames = np.where(finite, frames, np.float32(0))
        counters.clipped_samples += int(np.count_nonzero(np.abs(frames) > 1.0))
        frames = np.clip(frames, -1.0, 1.0)
    if frames.shape[1] == 1:
        return np.ascontiguousarray(frames[:, 0])
    return np.asarray(frames.mean(axis=1, dtype=np.float32))


def to_blocks(
    raws: Iterable[Raw],
    sample_rate: int,
    counters: Counters,
    anchor_ns: Callable[[], int],
    clock: Clock,
    pace: float | None,
) -> Generator[Block, None, None]:
    """Mix, resample and time `raws`.

    Capture time is `anchor_ns()`, read once when the first samples arrive, advanced by the samples
    since then: a wall clock that jumps later changes nothing. With `pace` the blocks come no sooner
    than they would from a microphone running `pace` times as fast as real time, and capture time runs
    as fast; a reader that is late is never waited for and nothing is dropped.
    """
    ns_per_sample = 1e9 / (sample_rate * (pace or 1.0))
    anchor, started, position = 0, 0.0, 0
    for samples, gap in _resampled(raws, sample_rate, counters):
        if position == 0:
            anchor, started = anchor_ns(), clock.monotonic()
        start = position + gap
        position = start + samples.size
        if pace is not None:
            wait = started + position * ns_per_sample * 1e-9 - clock.monotonic()
            if wait > 0:
                clock.sleep(wait)
        counters.blocks += 1
        counters.samples += samples.size
        counters.dropped_samples += gap
        yield Block(samples, anchor + round(start * ns_per_sample), anchor + round(position * ns_per_sample), gap)


def _resampled(raws: Iterable[Raw], sample_rate: int, counters: Counters) -> Iterator[tuple[NDArray[np.float32], int]]:
    """Yield (float32[m] with m >= 1, samples missing before them); each recording has its own filter."""
    resampler: Resampler | None = None
    gap = 0
    for raw in raws:
        if resampler is None or raw.starts:
            if resampler is not None and (tail := resampler.finish()).size:
                yield tail, gap
                gap = 0
            resampler = Resampler(raw.rate_hz, sample_rate)
            gap += round(raw.gap_frames * sample_rate / raw.rate_hz)
        if (samples := resampler.push(to_mono(raw.frames, counters))).size:
            yield samples, gap
            gap = 0
    if resampler is not None and (tail := resampler.finish()).size:
        yield tail, gap

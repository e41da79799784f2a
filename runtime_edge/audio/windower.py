"""Overlapping windows over a stream of blocks."""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Iterable, Iterator, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from runtime_edge.audio.audio_block import AudioBlock, Counters, Recording
from runtime_edge.errors import UsageError


class AudioWindow(msgspec.Struct, frozen=True):
    """One analysis window (docs/method.md, section 1).

    Attributes:
        index: position on the stream's time line, in hops. It never repeats; audio that was dropped or gated
            leaves its indices unused.
        capture_time_ns: capture time of the end of the last sample, ns since 1970.
        samples: float32[window_samples] in [-1, 1], a view into the windower's buffer: valid until the next
            window is asked for or the next block is pushed. Copy it to keep it.
        ready_at: when its last block was ready, monotonic seconds.
        file: the audio file that holds its first sample; None for live sources and pipes.
        file_offset: position of its first sample in that file, in samples at the stream's rate.
        file_began: when that file's first sample was recorded, if the file says so.
    """

    index: int
    capture_time_ns: int
    samples: NDArray[np.float32]
    ready_at: float
    file: str | None = None
    file_offset: int = 0
    file_began: dt.datetime | None = None


class Windower:
    """Cuts a stream into windows of `window_samples`, one every `hop_samples`.

    The samples lie in one buffer allocated at the start; a window is a view of it. Windows never span a gap or two
    recordings: filling restarts after either. The tail of a recording or stream that fills no window is dropped, but
    one too short for even a single window gives one window, padded with zeros.

    Args:
        window_samples: length of a window.
        hop_samples: distance between the starts of two windows; may be larger than the window.
        gate_db: windows whose RMS level, without their mean, is below this, in dB relative to 1.0, are counted but not
            handed out.
        counters: where windows are counted; a fresh one by default.

    Raises:
        UsageError: a length below 1, or a gate that is not a number.
    """

    def __init__(
        self,
        window_samples: int,
        hop_samples: int,
        gate_db: float | None = None,
        counters: Counters | None = None,
    ) -> None:
        if window_samples < 1 or hop_samples < 1:
            raise UsageError(f"window {window_samples} and hop {hop_samples}: both must be at least 1 sample")
        if gate_db is not None and not math.isfinite(gate_db):
            raise UsageError(f"silence gate {gate_db} dB: must be a number such as -60")
        self.counters = Counters() if counters is None else counters
        self._window = window_samples
        self._hop = hop_samples
        self._gate_energy = 0.0 if gate_db is None else window_samples * 10.0 ** (gate_db / 10.0)
        # At least twice the window, so that moving the live samples to the front never overlaps itself.
        self._buffer = np.zeros(4 * window_samples, np.float32)
        self._start = 0  # of the window being filled
        self._fill = 0  # samples in it
        self._skip = 0  # samples to pass over before it (hop larger than window)
        self._index = 0
        self._apart = 0  # the first index whose window shares no sample with the latest one
        self._position = 0  # samples on the time line so far, missing ones included
        self._end_time_ns = 0
        self._ready_at = 0.0
        self._recording: Recording | None = None
        self._recording_begin = 0  # position of the recording's start on the time line
        self._whole = True  # the stream or recording has given no window yet, and none of it is missing

    def windows(self, blocks: Iterable[AudioBlock]) -> Iterator[AudioWindow]:
        """Yield every window of a whole stream."""
        for block in blocks:
            yield from self.push(block)
        yield from self.flush()

    def push(self, block: AudioBlock) -> Iterator[AudioWindow]:
        """Take one block and yield the windows it completes. Exhaust the iterator before the next push."""
        if block.gap_samples:
            self._jump(block.gap_samples)
        if block.begins is not None:
            yield from self.flush()
            self._jump(0)
            self._recording, self._recording_begin, self._whole = block.begins, self._position, True
        samples, size, self._ready_at = block.samples, block.samples.size, block.ready_at
        taken = 0
        while taken < size:
            step = min(size - taken, self._skip or self._window - self._fill)
            if self._skip:
                self._skip -= step
            else:
                end = self._start + self._fill
                self._buffer[end : end + step] = samples[taken : taken + step]
                self._fill += step
            taken += step
            self._position += step
            elapsed = (block.end_time_ns - block.start_time_ns) * taken // size
            self._end_time_ns = block.start_time_ns + elapsed
            if self._fill == self._window:
                yield from self._emit()
                self._advance()
        if block.ends:
            yield from self.flush()

    def flush(self) -> Iterator[AudioWindow]:
        """End the stream or recording: yield one padded window if it was too short for any, else nothing."""
        if self._whole and self._fill:
            self._buffer[self._start + self._fill : self._start + self._window] = 0.0
            yield from self._emit()
        self._fill = 0

    def _emit(self) -> Iterator[AudioWindow]:
        self._whole = False
        self._apart = self._index + -(-self._window // self._hop)
        samples = self._buffer[self._start : self._start + self._window]
        if self._gate_energy and _energy(samples) < self._gate_energy:
            self.counters.gated += 1
            return
        self.counters.windows += 1
        file, began = (None, None) if self._recording is None else (self._recording.name, self._recording.began)
        file_offset = 0 if file is None else self._position - self._fill - self._recording_begin
        yield AudioWindow(self._index, self._end_time_ns, samples, self._ready_at, file, file_offset, began)

    def _advance(self) -> None:
        self._index += 1
        if self._hop >= self._window:
            self._start, self._fill, self._skip = 0, 0, self._hop - self._window
            return
        self._start += self._hop
        self._fill = self._window - self._hop
        if self._start + self._window > self._buffer.size:
            self._buffer[: self._fill] = self._buffer[self._start : self._start + self._fill]
            self._start = 0

    def _jump(self, gap_samples: int) -> None:
        """Restart after a gap, or at the start of a recording, at the index that the time line has reached."""
        self._whole = False
        self._position += gap_samples
        self._index = max(self._apart, -(-self._position // self._hop))
        self._start = self._fill = self._skip = 0


def joined(pieces: Sequence[tuple[int, NDArray[np.int16]]], most: int) -> NDArray[np.int16]:
    """At most `most` samples from pieces at positions on the time line, in order; silence in between."""
    if not pieces:
        return np.zeros(0, np.int16)
    first, (last, tail) = pieces[0][0], pieces[-1]
    samples = np.zeros(max(0, min(most, last + len(tail) - first)), np.int16)
    for place, piece in pieces:
        begin = max(0, place - first)
        at = samples[begin:][: len(piece)]
        at[:] = piece[: len(at)]
    return samples


def _energy(samples: NDArray[np.float32]) -> float:
    """Mean square without the mean: a constant offset from the converter is not sound."""
    around = samples - samples.mean()
    return float(np.dot(around, around))

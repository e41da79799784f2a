"""A log-mel front end by FFT, which computes only what is new in a window that overlaps the one before.

It replaces the block that computes the same image in the graph, once `prove` has shown that both agree. Frames
are reused only if the overlapping samples are bit-identical, so gaps, other files and repeated windows need no
special care; frames that reach past a window's ends are computed again.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from runtime_edge.errors import BackendError
from runtime_edge.formats.encoder.log_mel_info import HALF_TAPS, LogMelInfo, Span
from runtime_edge.formats.manifest import FrontEndInfo
from runtime_edge.inference.contract import Array, LoadedBlock
from runtime_edge.inference.mel_matrices import hann, interpolation, mel_bank

TOLERANCE = 1e-4
"""Largest difference from the graph's image at any value, in the image's own unit."""
_AT_ONCE = 64
"""Frames per FFT call: so few that its data stays in the caches and its products are too small for BLAS's threads."""
_GROUPS = 8
_STEP = 32
"""Input samples of one row of the interpolation, and rows of one product."""
_INTO = np.lib.NumpyVersion(np.__version__) >= "2.0.0"
"""Whether numpy's FFT accepts an output array."""


class NativeFrontEnd:
    """Bound, like a block, to the buffers of the window (1, samples) and of the image (1, 1, mels, frames)."""

    def __init__(self, front_end: FrontEndInfo, source: Array, result: Array) -> None:
        """Raises BackendError if the bundle does not describe its front end."""
        info = front_end.log_mel
        if info is None:
            raise BackendError("this bundle does not describe its front end")
        self.computed = 0
        """Frames computed for the latest window."""
        self._source, self._result = source, result
        self._frames, self._hop = result.shape[3], front_end.hop_samples
        self._signal = _Signal(info, source.shape[1], self._frames)
        self._spectrum = _Spectrum(info, front_end.sample_rate)
        self._image = np.zeros(result.shape[2:], np.float32)
        self._window = np.zeros(source.shape[1], np.float32)
        self._known = False
        self._kept, self._shift = info.kept_frames(source.shape[1], self._hop)

    def run(self) -> None:
        """See `LoadedBlock.run`."""
        window, image, parts = self._source[0], self._image, [(0, self._frames)]
        begin, end = self._kept
        if begin < end and self._follows(window):
            image[:, begin:end] = image[:, begin + self._shift : end + self._shift].copy()
            parts = [span for span in ((0, begin), (end, self._frames)) if span[0] < span[1]]
        self._known = False
        for span in parts:
            self._signal.compute(window, span)
        for spans in _batches(parts):
            bands, row = self._spectrum.bands([self._signal.frames[first:last] for first, last in spans]), 0
            for first, last in spans:
                image[:, first:last] = bands[row : row + last - first].T
                row += last - first
        self._result[0, 0] = image
        self._window[:] = window
        self.computed = sum(last - first for first, last in parts)
        self._known = True

    def _follows(self, window: npt.NDArray[np.float32]) -> bool:
        """Whether the window begins with what the previous one ended with."""
        return self._known and bool(np.array_equal(self._window[self._hop :], window[: -self._hop]))


def prove(graph: LoadedBlock, native: LoadedBlock, source: Array, result: Array, hop_samples: int) -> float:
    """The largest difference between the two images of noise, whispers and silence, some of them overlapping.

    Both blocks are bound to these buffers. Infinite if one of them gives values that are not finite.
    """
    samples = source.shape[1]
    noise = np.random.default_rng(0).normal(0.0, 0.05, samples + 2 * hop_samples).astype(np.float32)
    noise[samples // 2 : samples] *= 1e-3
    windows = [noise[start : start + samples] for start in (0, hop_samples, 2 * hop_samples)]
    worst = 0.0
    for window in [*windows, np.zeros(samples, np.float32), windows[0]]:
        source[0] = window
        graph.run()
        expected = result.copy()
        native.run()
        difference = float(np.max(np.abs(result - expected)))
        worst = max(worst, difference if math.isfinite(difference) else math.inf)
    return worst


class _Signal:
    """The signal that frames are cut from: the window at the raised rate, pre-emphasised, with reflected ends."""

    def __init__(self, info: LogMelInfo, samples: int, frames: int) -> None:
        self._info, self._samples = info, samples
        self._emphasis = info.preemphasis if info.emphasised else 0.0
        self._length = samples * info.upsample - info.emphasised
        steps = -(-samples // _STEP) if info.upsample > 1 else 0
        size = info.left + max(self._length + info.right, steps * _STEP * info.upsample)
        self._signal = np.zeros(size, np.float32)
        self.frames = _overlapping(self._signal, frames, info.win_length, info.hop_length)
        """(frames, win_length); only the rows computed last are valid."""
        if steps:
            matrix = interpolation(info.upsample, _STEP, self._emphasis)
            self._matrix = matrix.astype(np.float32)
            self._padded = np.zeros(steps * _STEP + 2 * HALF_TAPS, np.float32)
            self._reach = _overlapping(self._padded, steps, len(matrix), _STEP)
            self._raised = self._signal[info.left : info.left + steps * _STEP * info.upsample].reshape(steps, -1)

    def compute(self, window: npt.NDArray[np.float32], frames: Span) -> None:
        """Compute the part of the signal that these frames cover."""
        info, signal = self._info, self._signal
        first = frames[0] * info.hop_length - info.left
        last = (frames[1] - 1) * info.hop_length + info.win_length - info.left
        if first < 0:
            last = max(last, info.left + 1)
        if last > self._length:
            first = min(first, self._length - info.right - 1)
        first, last = max(first, 0), min(last, self._length)
        if info.upsample > 1:
            self._raise(window, first, last)
        elif self._emphasis:
            part = signal[info.left + first : info.left + last]
            np.multiply(window[first:last], np.float32(-self._emphasis), out=part)
            part += window[first + 1 : last + 1]
        else:
            signal[info.left + first : info.left + last] = window[first:last]
        own = signal[info.left : info.left + self._length]
        if first == 0 and info.left:
            signal[: info.left] = own[info.left : 0 : -1]
        if last == self._length and info.right:
            end = info.left + self._length
            signal[end : end + info.right] = own[-2 : -info.right - 2 : -1]

    def _raise(self, window: npt.NDArray[np.float32], first: int, last: int) -> None:
        self._padded[HALF_TAPS : HALF_TAPS + self._samples] = window
        width = _STEP * self._info.upsample
        for row in range(first // width, -(-last // width), _STEP):
            rows = slice(row, min(row + _STEP, -(-last // width)))
            np.matmul(np.ascontiguousarray(self._reach[rows]), self._matrix, out=self._raised[rows])


class _Spectrum:
    """Turns frames into logarithms of bands."""

    def __init__(self, info: LogMelInfo, sample_rate: int) -> None:
        self._info = info
        self._weights = hann(info).astype(np.float32)
        self._cut = np.zeros((_AT_ONCE, info.n_fft), np.float32)
        self._spectrum = np.zeros((_AT_ONCE, info.n_fft // 2 + 1), np.complex64)
        self._power = np.empty(self._spectrum.shape, np.float32)
        self._bands = np.empty((_AT_ONCE, info.n_mels), np.float32)
        self._products: list[tuple[slice, slice, npt.NDArray[np.float32]]] = []
        done = 0
        for rows in np.array_split(mel_bank(info, sample_rate), min(_GROUPS, info.n_mels)):
            used = np.flatnonzero(rows.any(axis=0))
            span = slice(int(used[0]), int(used[-1]) + 1) if len(used) else slice(0, 1)
            matrix = np.ascontiguousarray(rows[:, span].T, np.float32)
            self._products.append((slice(done, done + len(rows)), span, matrix))
            done += len(rows)

    def bands(self, parts: list[npt.NDArray[np.float32]]) -> npt.NDArray[np.float32]:
        """(frames, mels) from at most `_AT_ONCE` frames (frames, win_length); valid until the next call."""
        info, count = self._info, 0
        for frames in parts:
            cut = self._cut[count : count + len(frames), : info.win_length]
            np.multiply(self._levelled(frames), self._weights, out=cut)
            count += len(frames)
        power, bands = self._power_of(count), self._bands[:count]
        for band, span, matrix in self._products:
            np.matmul(power[:, span], matrix, out=bands[:, band])
        if info.log == "floor":
            np.maximum(bands, np.float32(info.eps), out=bands)
        else:
            bands += np.float32(info.eps)
        np.log(bands, out=bands)
        if info.scale != 1.0:
            bands *= np.float32(info.scale)
        if info.offset:
            bands += np.float32(info.offset)
        return bands

    def _levelled(self, frames: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """The frames without their means, and each pre-emphasised on its own, if the front end asks for that."""
        info = self._info
        if info.remove_dc:
            frames = frames - frames.mean(axis=1, keepdims=True)
        if info.preemphasis and info.preemphasis_on == "frame":
            before = np.concatenate([frames[:, :1], frames[:, :-1]], axis=1)
            frames = frames - np.float32(info.preemphasis) * before
        return frames

    def _power_of(self, count: int) -> npt.NDArray[np.float32]:
        """Spectrum of the first `count` frames: (count, bins)."""
        spectrum, power = self._spectrum[:count], self._power[:count]
        if _INTO:
            np.fft.rfft(self._cut[:count], axis=1, out=spectrum)  # type: ignore[arg-type]  # numpy knows complex128 alone
        else:
            spectrum[:] = np.fft.rfft(self._cut[:count], axis=1)
        parts = spectrum.view(np.float32)
        np.square(parts, out=parts)
        np.add(parts[:, ::2], parts[:, 1::2], out=power)
        return np.sqrt(power, out=power) if self._info.power == 1 else power


def _overlapping(signal: npt.NDArray[np.float32], rows: int, length: int, step: int) -> npt.NDArray[np.float32]:
    """A view (rows, length) of stretches that begin `step` values apart."""
    return np.lib.stride_tricks.sliding_window_view(signal, length)[: (rows - 1) * step + 1 : step]


def _batches(parts: list[Span]) -> Iterator[list[Span]]:
    """The frames of some spans, at most `_AT_ONCE` at a time."""
    batch: list[Span] = []
    room = _AT_ONCE
    for first, last in parts:
        while first < last:
            until = min(last, first + room)
            batch.append((first, until))
            room -= until - first
            first = until
            if not room:
                yield batch
                batch, room = [], _AT_ONCE
    if batch:
        yield batch

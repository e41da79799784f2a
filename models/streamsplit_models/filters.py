"""The fixed matrices of the log-mel front end, in float64: windowed DFT (in one step or two) and mel filter bank."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]


def hann(length: int, kind: str) -> FloatArray:
    """A `periodic` or `symmetric` Hann window; its first value is 0."""
    period = length if kind == "periodic" else length - 1
    return np.asarray(0.5 - 0.5 * np.cos(2 * np.pi * np.arange(length) / period))


def dft_kernel(
    n_fft: int, win_length: int, window: str, frame_preemphasis: float = 0.0, remove_dc: bool = False
) -> FloatArray:
    """Rows that turn a frame into its DFT: (2 [cosine, -sine], n_fft // 2 + 1 bins, win_length samples).

    `window` is a `periodic` or `symmetric` Hann window. Subtracting the frame's mean, then pre-emphasis
    y[t] = x[t] - c x[t-1] with x[-1] = x[0], then the window are linear too, so they are folded in.
    """
    samples = np.arange(win_length)
    phase = 2 * np.pi / n_fft * np.outer(np.arange(n_fft // 2 + 1), samples)
    kernel = np.stack([np.cos(phase), -np.sin(phase)]) * hann(win_length, window)
    if frame_preemphasis:
        following = np.roll(kernel, -1, axis=-1)
        following[..., -1] = 0.0
        first = kernel[..., 0].copy()
        kernel = kernel - frame_preemphasis * following
        kernel[..., 0] -= frame_preemphasis * first
    if remove_dc:
        kernel = kernel - kernel.mean(axis=-1, keepdims=True)
    return kernel


_SMALLEST = 128
"""A DFT of fewer values is a single product: splitting it would gain nothing."""


def factors(n_fft: int, win_length: int) -> tuple[int, int] | None:
    """(outer, inner) with outer * inner = n_fft; None if they save less than half of a dense product's work."""
    outer = next(length for length in range(math.isqrt(n_fft - 1) + 1, n_fft + 1) if n_fft % length == 0)
    half, inner = outer // 2 + 1, n_fft // outer
    work = 2 * half * win_length + half * (2 * inner) ** 2
    dense = (n_fft + 2) * win_length
    return (outer, inner) if n_fft >= _SMALLEST and 2 * work < dense else None


@dataclass(frozen=True)
class ShortTransforms:
    """One DFT of outer * inner values, done as two short ones, on frames weighted by `window`.

    Sample n = inner * q + j of a frame contributes to bin k = p + outer * r with exp(-2 pi i n k / n_fft), which is

        exp(-2 pi i q p / outer) * exp(-2 pi i j k / n_fft)

    so the first transform runs over q, separately for each residue j, and the second over j, with a matrix for each p.
    The input is real: bins in the upper half mirror those in the lower half, so half of the p are enough.
    """

    outer: int
    inner: int
    window: FloatArray
    last_bin: int
    """The highest bin that is needed."""

    @property
    def half(self) -> int:
        """How many values of p are computed."""
        return self.outer // 2 + 1

    @property
    def taps(self) -> int:
        """How many values of q a frame has; beyond them the frame is zero."""
        return -(-len(self.window) // self.inner)

    @property
    def weights(self) -> FloatArray:
        """The window by q and j: (taps, 1, inner)."""
        padded = np.pad(self.window, (0, self.taps * self.inner - len(self.window)))
        return padded.reshape(self.taps, 1, self.inner)

    def run(self, hop_length: int) -> int:
        """How many neighbouring samples always stay together when frames are cut."""
        return math.gcd(hop_length, self.inner)

    def places(self, frames: int, hop_length: int) -> npt.NDArray[np.int32]:
        """Which runs of the signal make up the frames, in the order (taps, frames, inner // run)."""
        run = self.run(hop_length)
        starts = self.inner * np.arange(self.taps)[:, None, None] + hop_length * np.arange(frames)[:, None]
        return ((starts + run * np.arange(self.inner // run)) // run).astype(np.int32).reshape(-1)

    @property
    def first(self) -> FloatArray:
        """(2 [real, imaginary] * half, taps)."""
        turns = np.outer(np.arange(self.half), np.arange(self.taps)) % self.outer
        return np.concatenate(_circle(turns, self.outer))

    @property
    def second(self) -> FloatArray:
        """(half, 2 [real, imaginary] * inner, 2 [real, imaginary] * len(order)): twiddle factors and transform."""
        samples = np.arange(self.inner)[:, None]
        frequencies = (np.arange(self.half)[:, None] + self.outer * self.order)[:, None, :]
        size = self.outer * self.inner
        real, imaginary = _circle(samples * frequencies % size, size)
        return np.concatenate(
            [np.concatenate([real, imaginary], axis=2), np.concatenate([-imaginary, real], axis=2)], axis=1
        )

    @cached_property
    def order(self) -> npt.NDArray[np.int64]:
        """The values of r that are needed, ordered so that those producing neighbouring bins are adjacent."""
        mirrored = self.inner - 1 - np.arange(self.inner)
        rank = np.minimum(np.arange(self.inner), mirrored)
        order = np.argsort(rank, kind="stable")
        return order[rank[order] * self.outer <= self.last_bin]

    @property
    def bins(self) -> npt.NDArray[np.int64]:
        """The bin of each value of the spectrum: (len(order) * half,); -1 for a duplicate."""
        size = self.outer * self.inner
        found = (self.outer * self.order[:, None] + np.arange(self.half)).reshape(-1)
        found = np.minimum(found, size - found)
        again = np.ones(len(found), bool)
        again[np.unique(found, return_index=True)[1]] = False
        return np.where(again, -1, found)


def _circle(turns: npt.NDArray[np.int64], size: int) -> tuple[FloatArray, FloatArray]:
    """exp(-2 pi i turns / size)."""
    angle = 2 * np.pi / size * turns
    return np.cos(angle), -np.sin(angle)


def mel_filters(
    sample_rate: int, n_fft: int, n_mels: int, f_min: float, f_max: float, scale: str, norm: str
) -> FloatArray:
    """Triangular filters between `f_min` and `f_max` Hz: (n_mels bands, n_fft // 2 + 1 bins).

    `scale`: `htk` and `slaney` triangles are straight in Hz, those of `kaldi` in (HTK) mel. `norm`: `none` for
    unit height, `slaney` for unit area in Hz.
    """
    axis = np.arange(n_fft // 2 + 1) * sample_rate / n_fft
    low, high = _to_mel(np.array([f_min, f_max]), scale)
    edges = np.linspace(low, high, n_mels + 2)
    if scale == "kaldi":
        axis = _to_mel(axis, scale)
    else:
        edges = _to_hertz(edges, scale)
    lower, centre, upper = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    bank: FloatArray = np.minimum((axis - lower) / (centre - lower), (upper - axis) / (upper - centre)).clip(min=0.0)
    return bank * 2.0 / (upper - lower) if norm == "slaney" else bank


_SLANEY_LINEAR = 200.0 / 3  # Hz per mel below 1 kHz
_SLANEY_LOG = math.log(6.4) / 27  # ln(Hz) per mel above


def _to_mel(hertz: FloatArray, scale: str) -> FloatArray:
    if scale != "slaney":
        return np.asarray(1127.0 * np.log1p(hertz / 700.0))
    above = 15.0 + np.log(np.maximum(hertz, 1000.0) / 1000.0) / _SLANEY_LOG
    return np.where(hertz < 1000.0, hertz / _SLANEY_LINEAR, above)


def _to_hertz(mel: FloatArray, scale: str) -> FloatArray:
    if scale != "slaney":
        return np.asarray(700.0 * np.expm1(mel / 1127.0))
    return np.where(mel < 15.0, mel * _SLANEY_LINEAR, 1000.0 * np.exp((mel - 15.0) * _SLANEY_LOG))

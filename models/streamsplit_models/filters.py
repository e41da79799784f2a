"""The fixed matrices of the log-mel front end, in float64: windowed DFT and mel filter bank."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]


def dft_kernel(
    n_fft: int, win_length: int, window: str, frame_preemphasis: float = 0.0, remove_dc: bool = False
) -> FloatArray:
    """Rows that turn a frame into its DFT: (2 [cosine, -sine], n_fft // 2 + 1 bins, win_length samples).

    `window` is a `periodic` or `symmetric` Hann window. Subtracting the frame's mean, then pre-emphasis
    y[t] = x[t] - c x[t-1] with x[-1] = x[0], then the window are linear too, so they are folded in.
    """
    samples = np.arange(win_length)
    phase = 2 * np.pi / n_fft * np.outer(np.arange(n_fft // 2 + 1), samples)
    period = win_length if window == "periodic" else win_length - 1
    kernel = np.stack([np.cos(phase), -np.sin(phase)]) * (0.5 - 0.5 * np.cos(2 * np.pi * samples / period))
    if frame_preemphasis:
        following = np.roll(kernel, -1, axis=-1)
        following[..., -1] = 0.0
        first = kernel[..., 0].copy()
        kernel = kernel - frame_preemphasis * following
        kernel[..., 0] -= frame_preemphasis * first
    if remove_dc:
        kernel = kernel - kernel.mean(axis=-1, keepdims=True)
    return kernel


def mel_filters(
    sample_rate: int, n_fft: int, n_mels: int, f_min: float, f_max: float, scale: str, norm: str
) -> FloatArray:
    """Triangular filters between `f_min` and `f_max` Hz: (n_mels bands, n_fft // 2 + 1 bins).

    `scale`: `htk` and `slaney` triangles are straight in Hz, `kaldi` ones in (HTK) mel. `norm`: `none` for
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

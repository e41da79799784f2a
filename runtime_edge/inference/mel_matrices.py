"""The matrices of a log-mel image, computed from its description: window, mel filter bank, interpolation."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from runtime_edge.formats.encoder.log_mel_info import HALF_TAPS, LogMelInfo

FloatArray = npt.NDArray[np.float64]

_KAISER_BETA = 8.0
_SLANEY_LINEAR = 200.0 / 3  # Hz per mel below 1 kHz
_SLANEY_LOG = math.log(6.4) / 27  # ln(Hz) per mel above


def hann(info: LogMelInfo) -> FloatArray:
    """The Hann window: (win_length,)."""
    period = info.win_length if info.window == "periodic" else info.win_length - 1
    return np.asarray(0.5 - 0.5 * np.cos(2 * np.pi * np.arange(info.win_length) / period))


def mel_bank(info: LogMelInfo, sample_rate: int) -> FloatArray:
    """The mel filter bank, triangles straight in Hz, or in mel for `kaldi`: (n_mels, n_fft // 2 + 1)."""
    axis = np.arange(info.n_fft // 2 + 1, dtype=np.float64) * (sample_rate * info.upsample / info.n_fft)
    low, high = _to_mel(np.array([info.f_min, info.f_max]), info.mel_scale)
    edges = np.linspace(low, high, info.n_mels + 2, dtype=np.float64)
    if info.mel_scale == "kaldi":
        axis = _to_mel(axis, info.mel_scale)
    else:
        edges = _to_hertz(edges, info.mel_scale)
    lower, centre, upper = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    rising, falling = (axis - lower) / (centre - lower), (upper - axis) / (upper - centre)
    bank: FloatArray = np.minimum(rising, falling).clip(min=0.0)
    return bank * 2.0 / (upper - lower) if info.mel_norm == "slaney" else bank


def interpolation(factor: int, step: int, emphasis: float = 0.0) -> FloatArray:
    """What `step` input samples, with `HALF_TAPS` on either side, produce: (step + 2 * HALF_TAPS, step * factor).

    Every `factor`-th value is an input sample; those between come from a windowed sinc. Pre-emphasis subtracts
    `emphasis` times the previous value, so the values then begin with the second one, the first that has a predecessor.
    """
    distance = np.arange(-HALF_TAPS + 1, HALF_TAPS + 1) - np.arange(factor)[:, None] / factor
    taps = np.sinc(distance) * np.i0(_KAISER_BETA * np.sqrt(1 - (distance / HALF_TAPS) ** 2))
    taps = (taps / taps.sum(axis=1, keepdims=True)).round(15)  # sinc at a whole number is 0, but not exactly in float64
    width = step + 2 * HALF_TAPS
    rows = [np.pad(taps, ((0, 0), (start + 1, step - start)))[:, :width] for start in range(step + 1)]
    values = np.concatenate(rows)
    if emphasis:
        values = values[1:] - emphasis * values[:-1]
    return np.ascontiguousarray(values[: step * factor].T)


def _to_mel(hertz: FloatArray, scale: str) -> FloatArray:
    if scale != "slaney":
        return np.asarray(1127.0 * np.log1p(hertz / 700.0))
    above = 15.0 + np.log(np.maximum(hertz, 1000.0) / 1000.0) / _SLANEY_LOG
    return np.where(hertz < 1000.0, hertz / _SLANEY_LINEAR, above)


def _to_hertz(mel: FloatArray, scale: str) -> FloatArray:
    if scale != "slaney":
        return np.asarray(700.0 * np.expm1(mel / 1127.0))
    return np.where(mel < 15.0, mel * _SLANEY_LINEAR, 1000.0 * np.exp((mel - 15.0) * _SLANEY_LOG))

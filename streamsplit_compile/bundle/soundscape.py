"""A seeded synthetic soundscape, which calibration and the demo use when no recordings are given."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Audio = npt.NDArray[np.float32]


def soundscape(seconds: float, sample_rate: int, seed: int) -> Audio:
    """Wind-like noise with chirps, tones, hums, clicks and silences on top; (samples,) float32 in [-1, 1]."""
    rng = np.random.default_rng(seed)
    total = round(seconds * sample_rate)
    audio = 0.02 * _coloured_noise(total, 1.0, rng)
    position = 0
    while position < total:
        length = int(rng.uniform(0.2, 1.5) * sample_rate)
        event = _EVENTS[rng.integers(len(_EVENTS))](length, sample_rate, rng)
        event *= np.hanning(length) ** 0.25 * 10 ** rng.uniform(-1.6, -0.1)
        stop = min(position + length, total)
        audio[position:stop] += event[: stop - position]
        position = stop + int(rng.exponential(0.3) * sample_rate)
    return np.clip(audio, -1.0, 1.0).astype(np.float32)


def _coloured_noise(length: int, slope: float, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    spectrum = np.fft.rfft(rng.standard_normal(length))
    spectrum /= np.maximum(np.arange(spectrum.size), 1.0) ** (slope / 2)
    noise = np.fft.irfft(spectrum, length)
    return np.asarray(noise / max(np.abs(noise).max(), 1e-9))


def _chirp(length: int, rate: int, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    time = np.arange(length) / rate
    start, stop = rng.uniform(200, 0.4 * rate, 2)
    phase = start * time + (stop - start) * time**2 / (2 * length / rate)
    return np.asarray(np.sin(2 * np.pi * phase))


def _hum(length: int, rate: int, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    time = np.arange(length) / rate
    pitch = rng.uniform(50, 400)
    parts = [np.sin(2 * np.pi * pitch * k * time + rng.uniform(0, 6)) / k for k in range(1, 8)]
    return np.asarray(np.sum(parts, axis=0) / 2)


def _noise(length: int, rate: int, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    return _coloured_noise(length, rng.uniform(0, 2), rng)


def _clicks(length: int, rate: int, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    period = int(rng.uniform(0.03, 0.3) * rate)
    decay = np.exp(-np.arange(length) % period / (0.004 * rate))
    return np.asarray(decay * rng.standard_normal(length))


_EVENTS = (_chirp, _hum, _noise, _clicks)

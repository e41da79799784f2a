"""What changes around a microphone after an encoder was trained: noise, a room, a lost band, too much gain.

Five severities of each kind (docs/method.md, section 9); the same recording, kind, severity and seed give the same
samples.

    heard = CORRUPTIONS["pink noise"](waveform, severity=3, seed=7)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt
from scipy import signal

from tools.room import impulse_response, pink_noise

Array = npt.NDArray[np.float32]
Corruption = Callable[[Array, int, int], Array]
"""Waveform (samples,) float32 in [-1, 1] at 16 kHz, severity 1 to 5, and seed to the waveform that is heard."""
SEVERITIES = (1, 2, 3, 4, 5)
RATE_HZ = 16_000
SNR_DB = (20.0, 15.0, 10.0, 5.0, 0.0)
RT60_S = (0.2, 0.4, 0.7, 1.0, 1.5)
LOW_PASS_HZ = (6000.0, 4000.0, 3000.0, 2000.0, 1000.0)
GAIN_DB = (0.0, 6.0, 12.0, 18.0, 24.0)
_VOICES = 6
_SYLLABLES_HZ = 4.0


def pink(waveform: Array, severity: int, seed: int) -> Array:
    """Pink noise at 20 to 0 dB below the recording."""
    return _with_noise(waveform, pink_noise(waveform.size, np.random.default_rng(seed)), severity)


def babble(waveform: Array, severity: int, seed: int) -> Array:
    """Several voices at once: noise in the band of speech whose level changes as syllables do, at 20 to 0 dB."""
    random = np.random.default_rng(seed)
    seconds = np.arange(waveform.size) / RATE_HZ
    noise = np.zeros(waveform.size)
    for _ in range(_VOICES):
        low = random.uniform(150.0, 600.0)
        band = signal.butter(2, [low, low * random.uniform(3.0, 6.0)], "bandpass", fs=RATE_HZ, output="sos")
        rate, phase = _SYLLABLES_HZ * random.uniform(0.7, 1.4), random.uniform(0.0, 2 * np.pi)
        level = np.maximum(0.0, np.sin(2 * np.pi * rate * seconds + phase)) + 0.1
        noise += level * signal.sosfilt(band, random.standard_normal(waveform.size))
    return _with_noise(waveform, noise, severity)


def room(waveform: Array, severity: int, seed: int) -> Array:
    """The reverberation of a room, 0.2 to 1.5 s."""
    echo = impulse_response(RT60_S[severity - 1], RATE_HZ, np.random.default_rng(seed))
    return _clipped(signal.fftconvolve(waveform, echo)[: waveform.size])


def low_pass(waveform: Array, severity: int, seed: int) -> Array:
    """Nothing above 6 to 1 kHz, as behind a cover or on a cheap microphone."""
    band = signal.butter(6, LOW_PASS_HZ[severity - 1], "lowpass", fs=RATE_HZ, output="sos")
    return _clipped(signal.sosfilt(band, waveform))


def too_loud(waveform: Array, severity: int, seed: int) -> Array:
    """Brought to full scale, then 0 to 24 dB more, and clipped."""
    peak = max(float(np.abs(waveform).max()), 1e-6)
    return _clipped(waveform / peak * 10 ** (GAIN_DB[severity - 1] / 20))


CHANGES = ("", "low-pass", "room", "too loud", "babble", "")
"""What is heard in the parts of a stream that changes; nothing but the recordings at its ends."""
CORRUPTIONS: Mapping[str, Corruption] = {
    "pink noise": pink,
    "babble": babble,
    "room": room,
    "low-pass": low_pass,
    "too loud": too_loud,
}


def changes(clips: int) -> list[str]:
    """What each clip of a stream that changes is heard through: equal parts, in the order of `CHANGES`."""
    return [CHANGES[place * len(CHANGES) // clips] for place in range(clips)]


def _with_noise(waveform: Array, noise: npt.NDArray[np.float64], severity: int) -> Array:
    power = max(float(np.mean(waveform.astype(np.float64) ** 2)), 1e-8)
    noise *= np.sqrt(power / np.mean(noise**2) / 10 ** (SNR_DB[severity - 1] / 10))
    return _clipped(waveform + noise)


def _clipped(waveform: npt.NDArray[np.float64]) -> Array:
    return np.clip(waveform, -1.0, 1.0).astype(np.float32)

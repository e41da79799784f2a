"""Simulates another microphone in another room, to which an encoder that was trained elsewhere has to adapt."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import signal

Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Room:
    """Band limit, reverberation, gain and noise, the same for every recording made in it."""

    seed: int
    rate: int = 16_000
    low_hz: float = 150.0
    high_hz: float = 3400.0
    reverberation_s: float = 0.6
    """Time in which an echo decays by 60 dB."""
    gain_db: float = -6.0
    snr_db: float = 10.0
    """Ratio of the recording's power to that of the pink noise."""

    def hear(self, waveform: Array, number: int = 0) -> Array:
        """A recording (samples,) float32 as heard by this room's microphone; `number` picks the noise."""
        echo = impulse_response(self.reverberation_s, self.rate, np.random.default_rng(self.seed))
        heard = signal.fftconvolve(waveform, echo)[: waveform.size]
        heard = signal.sosfilt(self._band(), heard)
        noise = pink_noise(waveform.size, np.random.default_rng((self.seed, number)))
        power = max(float(np.mean(heard**2)), 1e-8)
        noise *= np.sqrt(power / np.mean(noise**2) / 10 ** (self.snr_db / 10))
        louder = 10 ** (self.gain_db / 20)
        return np.clip((heard + noise) * louder, -1.0, 1.0).astype(np.float32)

    def _band(self) -> npt.NDArray[np.float64]:
        sections: npt.NDArray[np.float64] = signal.butter(
            4, [self.low_hz, self.high_hz], "bandpass", fs=self.rate, output="sos"
        )
        return sections


def impulse_response(decay_s: float, rate: int, random: np.random.Generator) -> npt.NDArray[np.float64]:
    """Direct sound, then noise that decays by 60 dB in `decay_s`; of unit energy."""
    seconds = np.arange(int(decay_s * rate)) / rate
    response = 0.3 * random.standard_normal(seconds.size) * 10 ** (-3.0 * seconds / decay_s)
    response[0] = 1.0
    unit: npt.NDArray[np.float64] = response / np.linalg.norm(response)
    return unit


def pink_noise(samples: int, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """Noise whose power falls with 1/f."""
    spectrum = np.fft.rfft(rng.standard_normal(samples))
    spectrum /= np.sqrt(np.maximum(np.arange(spectrum.size), 1))
    noise: npt.NDArray[np.float64] = np.fft.irfft(spectrum, samples)
    return noise

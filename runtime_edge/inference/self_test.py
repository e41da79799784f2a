"""The waveform of every bundle's self-test: made from a formula, so that it need not be shipped."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def self_test_waveform(samples: int, sample_rate: int) -> npt.NDArray[np.float32]:
    """A chirp from 100 Hz to 0.45 of the sample rate with four decaying bursts; (samples,) float32 in [-1, 1]."""
    time = np.arange(samples, dtype=np.float64) / sample_rate
    duration = samples / sample_rate
    sweep = 2 * np.pi * (100 * time + (0.45 * sample_rate - 100) * time**2 / (2 * duration))
    envelope = np.exp(-12.0 * np.mod(time, duration / 4) / duration)
    return (0.5 * np.sin(sweep) * envelope + 0.1 * np.sin(2 * np.pi * 440 * time)).astype(np.float32)

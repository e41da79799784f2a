import numpy as np
import pytest
from scipy.signal import chirp

from runtime_edge.inference.self_test import self_test_waveform


def test_it_is_the_chirp_that_its_description_says():
    time = np.arange(16000) / 16000
    sweep = chirp(time, 100, 1.0, 0.45 * 16000, phi=-90)
    bursts = np.exp(-12 * (time % 0.25))
    expected = 0.5 * sweep * bursts + 0.1 * np.sin(2 * np.pi * 440 * time)
    np.testing.assert_allclose(self_test_waveform(16000, 16000), expected, atol=1e-6)


@pytest.mark.parametrize(("samples", "rate"), [(16000, 16000), (480000, 48000), (1024, 4000), (1, 8000)])
def test_it_is_loud_enough_and_never_clips(samples, rate):
    wave = self_test_waveform(samples, rate)
    assert wave.shape == (samples,)
    assert wave.dtype == np.float32
    assert np.abs(wave).max() <= 0.6
    assert samples == 1 or wave.std() > 0.1
    assert np.array_equal(wave, self_test_waveform(samples, rate))

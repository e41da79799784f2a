import base64

import numpy as np
import pytest

from runtime_server.web.spectrogram import BANDS, MAX_COLUMNS, spectrogram


def levels(found):
    """(columns, bands)."""
    return np.frombuffer(base64.b64decode(found["levels"]), np.uint8).reshape(found["columns"], found["bands"])


@pytest.mark.parametrize("rate", [4000, 8000, 16_000, 32_000, 48_000])
def test_a_tone_that_rises_rises_in_the_picture(rate):
    time = np.arange(2 * rate) / rate
    tone = np.sin(2 * np.pi * (200 * time + 0.2 * rate * time**2 / 2))
    found = spectrogram((12_000 * tone).astype(np.int16), rate)
    picture = levels(found)
    assert (found["bands"], found["highest_hz"]) == (BANDS, rate / 2)
    assert picture.max() == 255
    loudest = picture.argmax(axis=1)
    assert loudest[-1] > loudest[len(loudest) // 2] > loudest[0]
    assert (np.diff(loudest.astype(int)) >= -1).all()


@pytest.mark.parametrize("rate", [4000, 8000, 16_000, 32_000, 48_000])
def test_noise_is_in_every_band(rate):
    noise = np.random.default_rng(0).normal(scale=3000, size=rate).astype(np.int16)
    assert levels(spectrogram(noise, rate)).mean(axis=0).min() > 100


@pytest.mark.parametrize(("samples", "columns"), [(1, 1), (100, 1), (16_000, 61), (16_000 * 60, MAX_COLUMNS)])
def test_a_picture_has_a_bound(samples, columns):
    found = spectrogram(np.ones(samples, np.int16), 16_000)
    assert found["columns"] == columns
    assert levels(found).shape == (columns, BANDS)


def test_silence_has_a_picture():
    assert levels(spectrogram(np.zeros(16_000, np.int16), 16_000)).shape == (61, BANDS)

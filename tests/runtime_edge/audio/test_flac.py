import io

import numpy as np
import pytest
import soundfile

from runtime_edge.audio import flac
from runtime_edge.errors import FormatError

RATE = 16_000


@pytest.fixture
def pcm():
    time = np.arange(8000) / RATE
    noise = np.random.default_rng(0).normal(0, 300, time.size)
    return (9000 * np.sin(2 * np.pi * 440 * time) + noise).astype(np.int16)


@pytest.mark.parametrize("samples", [1, 16, 2000, 4096, 8000])
def test_samples_come_back_exactly(pcm, samples):
    assert np.array_equal(flac.decode(flac.encode(pcm[:samples], RATE), samples, RATE), pcm[:samples])


def test_frames_are_those_of_a_file_without_its_head(pcm):
    file = io.BytesIO()
    soundfile.write(file, pcm, RATE, format="FLAC", subtype="PCM_16", compression_level=1.0)
    frames = flac.encode(pcm, RATE)
    assert file.getvalue().endswith(frames)
    assert frames[:2] == b"\xff\xf8"  # a frame's sync code


@pytest.mark.parametrize("damage", [lambda f: b"", lambda f: f[:-7], lambda f: f[9:], lambda f: b"?" + f[1:]])
def test_what_is_no_such_frames_is_refused(pcm, damage):
    with pytest.raises(FormatError):
        flac.decode(damage(flac.encode(pcm, RATE)), pcm.size, RATE)


def test_another_number_of_samples_is_refused(pcm):
    with pytest.raises(FormatError):
        flac.decode(flac.encode(pcm[:4000], RATE), pcm.size, RATE)

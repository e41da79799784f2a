import numpy as np
import pytest

from streamsplit_compile.bundle.soundscape import soundscape


def test_the_same_seed_gives_the_same_sound_and_another_another():
    assert np.array_equal(soundscape(3, 16000, 1), soundscape(3, 16000, 1))
    assert not np.array_equal(soundscape(3, 16000, 1), soundscape(3, 16000, 2))


@pytest.mark.parametrize("rate", [1000, 4000, 16000, 44100, 48000])
def test_it_is_audio_with_loud_and_quiet_places(rate):
    audio = soundscape(20, rate, 0)
    assert audio.shape == (20 * rate,)
    assert audio.dtype == np.float32
    assert np.abs(audio).max() <= 1.0
    levels = np.sqrt(np.square(audio.reshape(80, -1)).mean(1))
    assert levels.max() > 10 * levels.min() > 0


@pytest.mark.parametrize("rate", [11025, 16000, 44100])
def test_it_has_every_sample_that_was_asked_for(rate):
    for samples in (1, 15, 1001, rate - 1, rate + 1, 3 * rate + 7):
        assert soundscape(samples / rate, rate, 0).size == samples

"""Images are restored from what still holds them, and sound from images."""

import numpy as np
import pytest
import torch

from runtime_edge.formats.encoder.log_mel_info import LogMelInfo
from streamsplit_compile.audit.inversion import intelligibility, invert, sound_of, train_inverter
from streamsplit_models.front_end import FrontEnd
from streamsplit_models.log_mel import LogMel


@pytest.mark.parametrize("shape", [(4, 4, 5), (1, 16, 20), (40, 1, 1)])
def test_an_image_is_restored_from_a_linear_map_of_it_better_than_by_the_mean(shape):
    random = np.random.default_rng(0)
    causes = random.normal(size=(120, 4))
    images = (causes @ random.normal(size=(4, 16 * 20))).reshape(-1, 16, 20).astype(np.float32)
    values = (causes @ random.normal(size=(4, int(np.prod(shape))))).reshape(-1, *shape).astype(np.float32)
    train, choosing = np.arange(120) < 90, np.arange(120) >= 90
    inverter = train_inverter(values, images, train, choosing, seed=0)
    found = invert(inverter, values[choosing])
    assert found.shape == (30, 16, 20)
    error = np.square(found - images[choosing]).mean() / np.square(images[choosing] - images[train].mean(0)).mean()
    assert error < 0.9


def front_ends():
    plain = {"n_fft": 512, "win_length": 400, "hop_length": 160, "n_mels": 64, "f_min": 50.0, "f_max": 8000.0}
    yield LogMelInfo(**plain, eps=1e-6)
    yield LogMelInfo(**plain, eps=1e-5, log="offset", center=True, offset=0.9, scale=0.2, preemphasis=0.97)


@pytest.mark.parametrize("info", list(front_ends()))
def test_sound_of_an_image_has_nearly_that_image(info):
    rate = 16_000
    time = np.arange(rate) / rate
    chirp = 0.3 * np.sin(2 * np.pi * (300 + 900 * time) * time) * (1 + np.sin(2 * np.pi * 4 * time))
    names = ("n_fft", "win_length", "hop_length", "n_mels", "f_min", "f_max", "eps", "log", "center", "offset", "scale")
    front_end = LogMel(FrontEnd(**{name: getattr(info, name) for name in names}, preemphasis=info.preemphasis))
    given = front_end(torch.from_numpy(chirp.astype(np.float32))[None])[0, 0].numpy()
    sound = sound_of(given, info, rate, seed=0)[:rate]
    again = front_end(torch.from_numpy(np.pad(sound, (0, rate - len(sound))))[None])[0, 0].numpy()
    inner = slice(4, given.shape[1] - 4)
    loud = given[:, inner] > np.percentile(given[:, inner], 70)
    assert np.abs(again[:, inner] - given[:, inner])[loud].mean() < 0.25 * given[:, inner].std()


def test_a_recording_is_as_intelligible_as_itself_and_noise_is_not():
    random = np.random.default_rng(0)
    rate = 10_000
    envelope = 1 + np.sin(2 * np.pi * 4 * np.arange(rate) / rate)
    speech = (envelope * random.normal(size=rate)).astype(np.float32)
    assert intelligibility(speech, speech, rate) == pytest.approx(1.0, abs=1e-3)
    assert intelligibility(random.normal(size=rate).astype(np.float32), speech, rate) < 0.6
    assert intelligibility(speech[:1000], speech[:1000], rate) is None

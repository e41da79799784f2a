import dataclasses

import numpy as np
import pytest
import scipy.fft
import scipy.signal
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from streamsplit_models.filters import mel_filters
from streamsplit_models.front_end import PRESETS, FrontEnd
from streamsplit_models.log_mel import LogMel
from streamsplit_models.upsample import Upsample


def reference(config, signal):
    """(mels, frames) of a signal at the raised rate, in float64 with SciPy's FFT."""
    if config.preemphasis and config.preemphasis_on == "waveform":
        signal = scipy.signal.lfilter([1, -config.preemphasis], [1], signal)[1:]
    window = scipy.signal.get_window("hann", config.win_length, fftbins=config.window == "periodic")
    if config.center:
        side = (config.n_fft - config.win_length) // 2
        signal = np.pad(signal, config.n_fft // 2, mode="reflect")[side : side + len(signal) + config.win_length]
    frames = np.lib.stride_tricks.sliding_window_view(signal, config.win_length)[:: config.hop_length]
    if config.remove_dc:
        frames = frames - frames.mean(axis=1, keepdims=True)
    if config.preemphasis and config.preemphasis_on == "frame":
        frames = frames - config.preemphasis * np.concatenate([frames[:, :1], frames[:, :-1]], axis=1)
    spectrum = np.abs(scipy.fft.rfft(frames * window, config.n_fft)) ** config.power
    rate = config.sample_rate * config.upsample
    bank = mel_filters(rate, config.n_fft, config.n_mels, config.f_min, config.f_max, config.mel_scale, config.mel_norm)
    bands = bank @ spectrum.T
    logs = np.log(np.maximum(bands, config.eps) if config.log == "floor" else bands + config.eps)
    return logs * config.scale + config.offset


def noise(samples, batch=1):
    return (0.1 * np.random.default_rng(samples).standard_normal((batch, samples))).astype(np.float32)


@st.composite
def front_ends(draw):
    n_fft = draw(st.sampled_from([32, 128, 240, 254, 400, 512, 600, 1024]))
    emphasis = draw(st.sampled_from([0.0, 0.97]))
    return FrontEnd(
        window_samples=draw(st.integers(2 * n_fft, 5000)),
        upsample=draw(st.sampled_from([1, 1, 2, 3])),
        n_fft=n_fft,
        win_length=draw(st.integers(n_fft // 2, n_fft)),
        hop_length=draw(st.integers(1, 400)),
        n_mels=draw(st.integers(1, 40)),
        f_min=draw(st.sampled_from([0.0, 80.0])),
        f_max=draw(st.sampled_from([2000.0, 8000.0])),
        center=draw(st.booleans()),
        remove_dc=draw(st.booleans()),
        preemphasis=emphasis,
        preemphasis_on=draw(st.sampled_from(["waveform", "frame"])),
        window=draw(st.sampled_from(["periodic", "symmetric"])),
        mel_scale=draw(st.sampled_from(["htk", "slaney", "kaldi"])),
    )


@settings(max_examples=25, deadline=None)
@given(front_ends())
def test_any_front_end_matches_an_independent_fft(config):
    waveform = noise(config.window_samples)
    raised = Upsample(config.upsample)(torch.from_numpy(waveform)).double() if config.upsample > 1 else waveform

    image = LogMel(config)(torch.from_numpy(waveform))[0, 0].numpy()

    expected = reference(config, np.asarray(raised, np.float64)[0])
    assert image.shape == expected.shape == (config.n_mels, config.frames)
    np.testing.assert_allclose(np.exp(image), np.exp(expected), rtol=2e-3, atol=2e-5)


def test_a_whole_clip_is_its_windows_one_after_the_other():
    config = PRESETS["paper"]
    log_mel, clip = LogMel(config), torch.from_numpy(noise(40_000))

    image = log_mel(clip)

    assert image.shape[-1] == 1 + (40_000 - config.win_length) // config.hop_length
    for frame in (0, 50, 100):
        start = frame * config.hop_length
        window = log_mel(clip[:, start : start + config.window_samples])
        torch.testing.assert_close(image[..., frame : frame + config.frames], window, atol=1e-5, rtol=0)


@pytest.mark.parametrize("emphasis", [0.0, 0.97])
def test_pre_emphasis_can_be_merged_into_upsampling(emphasis):
    waveform = torch.from_numpy(noise(4000, batch=2))
    raised = Upsample(2)(waveform).double()
    expected = raised[:, 1:] - emphasis * raised[:, :-1]

    found = Upsample(2, emphasis)(waveform)[:, 1:]

    torch.testing.assert_close(found.double(), expected, atol=1e-6, rtol=0)


def test_a_front_end_describes_itself():
    config = dataclasses.replace(PRESETS["efficientat"], n_mels=64)
    assert FrontEnd.from_dict(LogMel(config).describe()) == config

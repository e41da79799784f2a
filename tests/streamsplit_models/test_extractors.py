"""Front ends against the feature extractors of `transformers`, which are an implementation of their own in NumPy."""

import json

import pytest
import torch

from streamsplit_models.extractors import ast, clap, wav2vec2, whisper

pytestmark = pytest.mark.integration

AST = {
    "sampling_rate": 16_000, "num_mel_bins": None, "max_length": None, "do_normalize": True,
    "mean": -4.2677393, "std": 4.5689974,
}  # fmt: skip
CLAP = {
    "sampling_rate": 48_000, "feature_size": None, "fft_window_size": 1024, "hop_length": 480,
    "frequency_min": 50.0, "frequency_max": 14_000.0, "max_length_s": None,
}  # fmt: skip
WHISPER = {"sampling_rate": 16_000, "feature_size": None, "n_fft": 400, "hop_length": 160, "chunk_length": None}
WAVEFORM = {"sampling_rate": 16_000, "do_normalize": True}
SMALL = {
    ast: ((200, 128), AST),
    clap: ((1, 201, 64), CLAP),
    whisper: ((80, 300), WHISPER),
    wav2vec2: ((8000,), WAVEFORM),
}
"""An encoder's input, and settings, for each front end."""
LOG_TOLERANCE = 0.05
"""Of a natural logarithm: beside a full-scale tone float32 leaves that much in the quiet bands of the same frame."""

# Kaldi's 128 bands over 257 bins have an empty one; AST was trained with it.
empty_band = pytest.mark.filterwarnings("ignore:At least one mel filter has all zero values:UserWarning")


@pytest.fixture
def transformers():
    return pytest.importorskip("transformers")


@pytest.fixture
def clips(sounds):
    """Synthetic sounds, noise, a loud tone over near silence, silence, and a click."""

    def make(front_end):
        rate, samples = front_end.sample_rate, front_end.window_samples
        clips = torch.cat([sounds(2, rate, samples), torch.zeros(4, samples)])
        generator = torch.Generator().manual_seed(7)
        clips[2] = torch.rand(samples, generator=generator) * 2 - 1
        tone = torch.sin(torch.arange(samples) * 2 * torch.pi * 440 / rate)
        clips[3] = torch.where(
            torch.arange(samples) < samples // 3, tone, 1e-3 * torch.randn(samples, generator=generator)
        )
        clips[5, samples // 2] = 1.0
        return clips

    return make


def library_s(extractor, clips, name):
    made = extractor(list(clips.numpy()), sampling_rate=extractor.sampling_rate, return_tensors="pt")
    return made[name]


@empty_band
@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ((200, 128), {}),
        ((1024, 128), {}),
        ((300, 64), {"num_mel_bins": 64, "max_length": 300, "mean": -3.5, "std": 2.5}),
        ((100, 128), {"do_normalize": False}),
        (None, {"max_length": 120}),
    ],
)
def test_ast_makes_what_the_library_makes(transformers, clips, shape, said):
    features = ast(shape, **{**AST, **said})
    frames, mels = shape or (120, 128)
    extractor = transformers.ASTFeatureExtractor(**{**said, "max_length": frames, "num_mel_bins": mels})
    waveforms = clips(features.front_end)

    made = features(waveforms)

    assert features.front_end.window_samples == frames * 160
    expected = library_s(extractor, waveforms, "input_values")
    torch.testing.assert_close(made, expected, atol=LOG_TOLERANCE * features.front_end.scale, rtol=0)


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ((1, 1001, 64), {}),
        ((1, 201, 64), {"max_length_s": 2}),
        (None, {"max_length_s": 3, "feature_size": 32, "frequency_min": 0, "frequency_max": 16_000}),
        ((1, 251, 64), {"sampling_rate": 32_000, "hop_length": 256, "fft_window_size": 512, "max_length_s": 2}),
    ],
)
def test_clap_makes_what_the_library_makes(transformers, clips, shape, said):
    features = clap(shape, **{**CLAP, **said})
    given = {"frequency_min": 50, **said, "truncation": "rand_trunc"}
    extractor = transformers.ClapFeatureExtractor(**given)
    waveforms = clips(features.front_end)

    made = features(waveforms)

    expected = library_s(extractor, waveforms, "input_features")
    assert made.shape == expected.shape
    torch.testing.assert_close(made, expected, atol=LOG_TOLERANCE * features.front_end.scale, rtol=0)
    assert (made - expected).abs().mean() < 1e-3  # decibels


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ((80, 3000), {}),
        ((128, 3000), {"feature_size": 128}),
        ((80, 500), {"chunk_length": 5}),
        (None, {"chunk_length": 2, "hop_length": 200, "n_fft": 512}),
    ],
)
def test_whisper_makes_what_the_library_makes(transformers, clips, shape, said):
    features = whisper(shape, **{**WHISPER, **said})
    extractor = transformers.WhisperFeatureExtractor(**said)
    waveforms = clips(features.front_end)

    made = features(waveforms)

    expected = library_s(extractor, waveforms, "input_features")
    assert made.shape == expected.shape
    torch.testing.assert_close(made, expected, atol=LOG_TOLERANCE * features.front_end.scale / 4, rtol=0)


@pytest.mark.parametrize("normalised", [False, True])
def test_a_waveform_is_normalised_as_the_library_does(transformers, clips, normalised):
    features = wav2vec2((8000,), sampling_rate=16_000, do_normalize=normalised)
    waveforms = clips(features.front_end)
    expected = library_s(transformers.Wav2Vec2FeatureExtractor(do_normalize=normalised), waveforms, "input_values")
    torch.testing.assert_close(features(waveforms), expected, atol=2e-4, rtol=1e-5)


@pytest.mark.parametrize("make", SMALL)
def test_export_with_a_dynamic_batch_is_exact(make, clips, exported_error):
    shape, settings = SMALL[make]
    features = make(shape, **settings)
    waveforms = clips(features.front_end)[:3]
    assert features(waveforms).shape == (3, *shape)
    assert exported_error(features, waveforms) <= 1e-5


@pytest.mark.parametrize("make", SMALL)
def test_there_is_nothing_to_train_and_the_front_end_is_plain_data(make):
    shape, settings = SMALL[make]
    features = make(shape, **settings)
    assert not features.state_dict()
    assert json.loads(json.dumps(features.front_end.to_dict())) == features.front_end.to_dict()


@pytest.mark.parametrize(
    ("make", "shape", "said", "named"),
    [
        (ast, (1024, 128), {**AST, "max_length": 512}, "max_length is 512, the encoder takes 1024"),
        (ast, (1024, 128), {**AST, "num_mel_bins": 64}, "num_mel_bins is 64, the encoder takes 128"),
        (ast, (1, 1024, 128), AST, r"makes \(batch, frames, mels\), the encoder takes \(batch, 1, 1024, 128\)"),
        (ast, (0, 128), AST, "window_samples is 0"),
        (clap, (1, 1001, 64), {**CLAP, "max_length_s": 5}, "max_length_s is 5: number of frames is 501, .* takes 1001"),
        (clap, (4, 1001, 64), CLAP, "number of mel images is 1, the encoder takes 4"),
        (clap, (1, 1001, 64), {**CLAP, "frequency_max": 30_000.0}, "f_max is 30000.0"),
        (whisper, (80, 3000), {**WHISPER, "chunk_length": 10}, "chunk_length is 10: number of frames is 1000"),
        (whisper, (128, 3000), {**WHISPER, "feature_size": 80}, "feature_size is 80, the encoder takes 128"),
        (wav2vec2, (80, 3000), WAVEFORM, r"makes \(batch, samples\), the encoder takes \(batch, 80, 3000\)"),
    ],
)
def test_what_does_not_fit_the_encoder_is_named(make, shape, said, named):
    with pytest.raises(ValueError, match=named) as error:
        make(shape, **said)
    assert "\n" not in str(error.value)

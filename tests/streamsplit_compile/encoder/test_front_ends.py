import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from runtime_edge.errors import FormatError, UsageError
from runtime_edge.formats.encoder.load_options import FrontEndOption, LoadOptions
from runtime_edge.inference.prefix import Prefix
from streamsplit_compile.bundle.compiler import CompileOptions, compile_encoder
from streamsplit_compile.cli.main import main as ssc
from streamsplit_compile.cost.targets import load_target
from streamsplit_compile.encoder.encoders import load_encoder
from streamsplit_compile.encoder.front_ends import MAX_BYTES, PRESETS, build_front_end, parse_front_end, read_front_end
from streamsplit_compile.encoder.segment import run_segments, split
from streamsplit_compile.encoder.selection import cuts_of
from tools.fuzz_files import front_ends

pytestmark = pytest.mark.integration


class Spectrogram(nn.Module):
    """Takes what AST takes, 60 frames of 128 bands."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.patches = nn.Conv1d(128, 16, 10, 10)
            self.head = nn.Linear(16, 8)

    def forward(self, frames):
        return self.head(self.patches(frames.transpose(1, 2)).relu().mean(2))


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    path = tmp_path_factory.mktemp("archive") / "encoder.pt2"
    shapes = ({0: torch.export.Dim("batch")},)
    torch.export.save(
        torch.export.export(Spectrogram().eval(), (torch.zeros(2, 60, 128),), dynamic_shapes=shapes), path
    )
    return path


@pytest.mark.parametrize("data", front_ends())
def test_a_file_is_its_preset_and_what_differs(data):
    option = parse_front_end(data, "file")
    said = json.loads(data)
    assert option.preset in PRESETS
    assert option.settings.items() <= said.items()
    assert parse_front_end(json.dumps({**said, "sampling_rate": 16_000}).encode(), "file").preset == option.preset


def test_a_file_as_long_as_whisper_s_first_ones_is_read(tmp_path):
    path = tmp_path / "preprocessor_config.json"
    said = {**json.loads(front_ends()[2]), "mel_filters": [[0.0123456789] * 201] * 60}
    path.write_text(json.dumps(said))
    assert read_front_end(str(path)) == FrontEndOption(
        preset="whisper", settings={"feature_size": 80, "chunk_length": 30}
    )
    path.write_text(" " * (MAX_BYTES + 1))
    with pytest.raises(FormatError, match=f"{MAX_BYTES + 1} bytes, more than"):
        read_front_end(str(path))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"feature_extractor_type": "EvilExtractor"}, "EvilExtractor"),
        ({"auto_map": {"AutoFeatureExtractor": "evil.py"}}, "auto_map"),
        ({"std": 0}, "std"),
        ({"mean": "x"}, "mean"),
        ({"max_length": 10**9}, "max_length"),
        ({"sampling_rate": 8000}, "sampling_rate"),
    ],
)
def test_what_is_unknown_or_out_of_bounds_is_named(change, named):
    said = {**json.loads(front_ends()[0]), **change}
    with pytest.raises(FormatError, match=f"file: .*{named}"):
        parse_front_end(json.dumps(said).encode(), "file")


def test_keys_given_twice_and_fused_models_are_refused():
    twice = front_ends()[3].replace(b'"feature_size": 1', b'"sampling_rate": 8000')
    with pytest.raises(FormatError, match="'sampling_rate' appears twice"):
        parse_front_end(twice, "file")
    with pytest.raises(FormatError, match="truncation"):
        parse_front_end(front_ends()[1].replace(b"rand_trunc", b"fusion"), "file")


def test_bands_without_a_bin_are_refused():
    said = json.loads(front_ends()[1]) | {"frequency_min": 0.0, "frequency_max": 1.0}
    with pytest.raises(UsageError, match=r"f_max is 1\.0, must be further from f_min = 0\.0"):
        build_front_end(parse_front_end(json.dumps(said).encode(), "file"), None)


@settings(max_examples=50, deadline=None)
@given(
    st.fixed_dictionaries(
        {"feature_extractor_type": st.just("ClapFeatureExtractor"), "truncation": st.just("rand_trunc")},
        optional={
            "feature_size": st.integers(0, 40),
            "fft_window_size": st.integers(10, 600),
            "hop_length": st.integers(100, 5000),
            "frequency_min": st.floats(-1, 2e5),
            "frequency_max": st.floats(-1, 2e5),
            "max_length_s": st.integers(0, 2),
            "sampling_rate": st.integers(500, 9000),
        },
    )
)
def test_settings_within_bounds_make_a_front_end_or_are_refused(said):
    try:
        front_end = build_front_end(parse_front_end(json.dumps(said).encode(), "file"), None)
    except (FormatError, UsageError):
        return
    assert front_end.window_samples == said.get("max_length_s", 10) * front_end.sample_rate


def test_a_spectrogram_is_refused_with_the_option_that_makes_it(archive):
    with pytest.raises(UsageError, match=r"float32 \(batch, 60, 128\); --front-end PRESET"):
        load_encoder(archive)


@pytest.mark.parametrize(
    ("front_end", "sample_rate", "named"),
    [
        ("whisper", None, None),
        ("clap", None, r"makes \(batch, 1, frames, mels\), the encoder takes \(batch, 60, 128\)"),
        ("nowhere.json", None, "nowhere.json: no such file, and the presets are ast, clap"),
        ("ast", 8000, "--sample-rate 8000: the front end is for 16000 Hz"),
    ],
)
def test_what_does_not_fit_is_refused(archive, front_end, sample_rate, named):
    if named is None:  # 60 bands of 128 frames fit, too: the user knows which
        assert load_encoder(archive, front_end=front_end).window_samples == 128 * 160
        return
    with pytest.raises(UsageError, match=named):
        load_encoder(archive, sample_rate=sample_rate, front_end=front_end)


def test_a_bundle_has_a_cut_at_the_spectrogram_and_gives_the_same_embedding(archive, tmp_path, capsys):
    encoder = load_encoder(archive, front_end="ast")
    options = CompileOptions(targets=[load_target("rpi4")], cuts="front_end.log_mel,front_end", calibration_windows=2)
    bundle = compile_encoder(encoder, options, tmp_path / "bundle")
    waveform = np.random.default_rng(0).normal(0, 0.1, (1, encoder.window_samples)).astype(np.float32)

    features = build_front_end(FrontEndOption(preset="ast"), (60, 128)).module
    with torch.no_grad():
        expected = Spectrogram().eval()(features(torch.from_numpy(waveform))).numpy()
    embedding = Prefix(bundle).embed(waveform[0])

    np.testing.assert_allclose(embedding.reshape(expected.shape), expected, atol=1e-4)
    assert [cut.name for cut in bundle.manifest.info.cuts][1:3] == ["front_end.log_mel", "front_end"]
    assert bundle.manifest.info.encoder.load == LoadOptions(front_end=FrontEndOption(preset="ast"))
    assert encoder.tensors.keys() == Spectrogram().state_dict().keys()
    with pytest.raises(SystemExit):
        ssc(["server", "run", str(archive), str(bundle.path), "--state", str(tmp_path / "server")])
    assert "the bundle was compiled with --front-end ast; give the same here" in capsys.readouterr().err
    assert load_encoder(archive, recorded=bundle.manifest.info.encoder.load, front_end="ast").id == "encoder"


@pytest.mark.parametrize("preset", PRESETS)
def test_an_archive_of_any_batch_keeps_it(preset, tmp_path):
    made = build_front_end(FrontEndOption(preset=preset, settings=SHORT[preset]), None)
    module = nn.Sequential(nn.Flatten(), nn.Linear(int(np.prod(made.shape)), 4)).eval()
    torch.export.save(
        torch.export.export(module, (torch.zeros(2, *made.shape),), dynamic_shapes=({0: torch.export.Dim("batch")},)),
        tmp_path / "encoder.pt2",
    )
    encoder = load_encoder(tmp_path / "encoder.pt2", front_end=preset)
    waveform = torch.randn(3, made.window_samples, generator=torch.Generator().manual_seed(0)) / 10
    with torch.no_grad():
        torch.testing.assert_close(encoder.graph.module(waveform), module(made.module(waveform)))
    assert encoder.graph.dynamic_batch
    assert (encoder.sample_rate, encoder.window_samples) == (made.sample_rate, made.window_samples)


SHORT = {"ast": {"max_length": 50}, "clap": {"max_length_s": 1}, "wav2vec2": {}, "whisper": {"chunk_length": 1}}


def ast_model():
    transformers = pytest.importorskip("transformers")
    settings = transformers.ASTConfig(
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        num_mel_bins=64,
        max_length=96,
    )

    class Pooled(nn.Module):
        def __init__(self):
            super().__init__()
            self.ast = transformers.ASTModel(settings)

        def forward(self, features):
            return self.ast(features).pooler_output

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Pooled().eval()


def test_an_ast_of_transformers_split_behind_its_front_end_embeds_as_that_library_does(tmp_path):
    model = ast_model()
    from transformers import ASTFeatureExtractor

    extractor = ASTFeatureExtractor(num_mel_bins=64, max_length=96)
    extractor.save_pretrained(tmp_path)
    torch.export.save(torch.export.export(model, (torch.zeros(1, 96, 64),)), tmp_path / "ast.pt2")
    encoder = load_encoder(tmp_path / "ast.pt2", front_end=str(tmp_path / "preprocessor_config.json"))
    options = CompileOptions(targets=[load_target("rpi4")], cuts="front_end.log_mel,front_end", calibration_windows=2)
    bundle = compile_encoder(encoder, options, tmp_path / "bundle")
    waveform = np.random.default_rng(0).normal(0, 0.1, encoder.window_samples).astype(np.float32)
    features = extractor(waveform, sampling_rate=16_000, return_tensors="pt").input_values
    with torch.no_grad():
        expected = model(features).numpy()[0]

    prefix = Prefix(bundle)
    prefix.start(waveform)
    for cut in range(3):
        sent = prefix.advance(cut).copy()
    suffix = split(encoder.graph, cuts_of(encoder.graph.candidates, bundle.manifest, "bundle"))[2:]
    with torch.no_grad():
        received = run_segments(suffix, torch.from_numpy(sent)).numpy().ravel()

    assert bundle.manifest.info.cuts[2].name == "front_end"
    np.testing.assert_allclose(received, expected, atol=1e-3)


def test_a_front_end_in_front_of_a_factory_that_takes_other_features_is_refused_with_its_shape(tmp_path):
    torch.save(Narrow().state_dict(), tmp_path / "narrow.pt")
    with pytest.raises(UsageError, match=r"; the front end makes \(batch, 1024, 128\)$"):
        load_encoder(tmp_path / "narrow.pt", f"{__name__}:Narrow", front_end="ast")


class Narrow(nn.Module):
    """Takes frames of 64 bands."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(64, 8)

    def forward(self, frames):
        return self.head(frames).mean(1)

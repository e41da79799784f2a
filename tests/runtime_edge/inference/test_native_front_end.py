"""A front end's FFT: the graph's image, whatever the front end, and only as much of it as is new."""

import dataclasses
import json
import logging
import shutil

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from runtime_edge.errors import BackendError, BundleError
from runtime_edge.formats.bundle import Bundle, open_bundle
from runtime_edge.formats.encoder.log_mel_info import LogMelInfo
from runtime_edge.formats.manifest import FrontEndInfo
from runtime_edge.inference.engine import Engine
from runtime_edge.inference.native_front_end import TOLERANCE, NativeFrontEnd, prove
from runtime_edge.inference.prefix import Prefix
from runtime_edge.inference.profile import measure_profile
from streamsplit_compile.bundle.compiler import CompileOptions, compile_encoder
from streamsplit_compile.cost.targets import load_target
from streamsplit_compile.encoder.encoders import from_module
from streamsplit_models.encoder import Normalize
from streamsplit_models.front_end import PRESETS, FrontEnd
from streamsplit_models.log_mel import LogMel

RAISED = dataclasses.replace(
    PRESETS["efficientat"], sample_rate=16_000, window_samples=16_000, hop_samples=8_000, upsample=2
)
SHORT = {name: config for name, config in PRESETS.items() if name != "whisper"} | {"mn04": RAISED}


def described(config):
    fields = {name: value for name, value in config.to_dict().items() if name in LogMelInfo.__struct_fields__}
    return FrontEndInfo(
        sample_rate=config.sample_rate, window_samples=config.window_samples, hop_samples=config.hop_samples,
        details={}, log_mel=LogMelInfo(**fields),
    )  # fmt: skip


class InTorch:
    """The graph's image, as a block."""

    def __init__(self, config, source, result):
        self.log_mel, self.source, self.result = LogMel(config), source, result

    def run(self):
        with torch.inference_mode():
            self.result[...] = self.log_mel(torch.from_numpy(self.source)).numpy()


def both(config):
    source = np.zeros((1, config.window_samples), np.float32)
    result = np.zeros((1, 1, config.n_mels, config.frames), np.float32)
    return InTorch(config, source, result), NativeFrontEnd(described(config), source, result), source, result


def stream(config, windows):
    noise = np.random.default_rng(3).normal(0, 0.05, config.window_samples + (windows - 1) * config.hop_samples)
    starts = range(0, windows * config.hop_samples, config.hop_samples)
    return [noise[start : start + config.window_samples].astype(np.float32) for start in starts]


@pytest.mark.parametrize("name", sorted(SHORT))
def test_it_is_the_graphs_image_of_every_preset_and_computes_half_of_it(name):
    config = SHORT[name]
    graph, native, source, result = both(config)
    counts = []
    for window in stream(config, 4):
        source[0] = window
        graph.run()
        expected = result.copy()
        native.run()
        np.testing.assert_allclose(result, expected, atol=TOLERANCE, rtol=0)
        counts.append(native.computed)
    new_frames = config.hop_samples * config.upsample // config.hop_length
    assert counts[0] == config.frames
    assert all(new_frames <= count <= new_frames + 5 for count in counts[1:])


@st.composite
def front_ends(draw):
    n_fft = draw(st.sampled_from([16, 30, 128, 254, 400, 512]))
    upsample = draw(st.sampled_from([1, 1, 2, 3]))
    hop_length = draw(st.integers(4, 200))
    return FrontEnd(
        window_samples=draw(st.integers(600, 3000)),
        hop_samples=hop_length * draw(st.integers(1, 9)) // draw(st.sampled_from([1, 1, upsample])),
        upsample=upsample,
        n_fft=n_fft,
        win_length=draw(st.integers(max(2, n_fft // 2), n_fft)),
        hop_length=hop_length,
        n_mels=draw(st.integers(1, 40)),
        f_min=draw(st.sampled_from([0.0, 80.0])),
        f_max=draw(st.sampled_from([4000.0, 8000.0])),
        power=draw(st.sampled_from([1.0, 2.0])),
        log=draw(st.sampled_from(["floor", "offset"])),
        eps=1e-3,
        center=draw(st.booleans()),
        remove_dc=draw(st.booleans()),
        preemphasis=draw(st.sampled_from([0.0, 0.97])),
        preemphasis_on=draw(st.sampled_from(["waveform", "frame"])),
        window=draw(st.sampled_from(["periodic", "symmetric"])),
        mel_scale=draw(st.sampled_from(["htk", "slaney", "kaldi"])),
        scale=draw(st.sampled_from([1.0, 0.2])),
        offset=draw(st.sampled_from([0.0, 0.9])),
    )


@settings(max_examples=40, deadline=None)
@given(front_ends())
def test_any_front_end_is_proved_and_overlaps_give_what_a_fresh_window_gives(config):
    graph, native, source, result = both(config)
    assert prove(graph, native, source, result, config.hop_samples) <= TOLERANCE
    for window in stream(config, 3):
        source[0] = window
        native.run()
        found = result.copy()
        both(config)  # nothing is shared between two of them
        fresh = NativeFrontEnd(described(config), source, result)
        fresh.run()
        np.testing.assert_allclose(found, result, atol=2e-6, rtol=1e-6)


def test_after_a_gap_and_for_other_samples_nothing_is_kept():
    config = SHORT["paper"]
    _, native, source, result = both(config)
    first, second, third, _ = stream(config, 4)
    source[0] = first
    native.run()
    changed = second.copy()
    changed[100] += 1e-7
    for window in (third, first, changed, np.full_like(first, np.nan)):
        source[0] = window
        native.run()
        assert native.computed == config.frames
    source[0] = first
    native.run()
    source[0] = second
    native.run()
    assert native.computed < config.frames
    assert np.isfinite(result).all()


def test_hops_that_are_no_whole_number_of_frames_compute_everything():
    config = dataclasses.replace(SHORT["paper"], hop_samples=8001)
    _, native, source, _ = both(config)
    for window in stream(config, 3):
        source[0] = window
        native.run()
        assert native.computed == config.frames


def test_without_a_description_there_is_none():
    config = SHORT["paper"]
    source, result = np.zeros((1, 16000), np.float32), np.zeros((1, 1, 128, 98), np.float32)
    with pytest.raises(BackendError, match="does not describe"):
        NativeFrontEnd(msgspec.structs.replace(described(config), log_mel=None), source, result)


class Heard(nn.Module):
    """A log-mel and a linear layer, its norm last."""

    sample_rate, window_samples = 16_000, 4_000

    def __init__(self):
        super().__init__()
        self.log_mel = LogMel(FrontEnd(n_mels=16, window_samples=4_000, hop_samples=2_000))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.layer = nn.Sequential(nn.Conv2d(1, 8, 3, stride=2), nn.ReLU())
            self.projection = nn.Linear(8, 12)
        self.normalize = Normalize()

    def forward(self, waveform):
        return self.normalize(self.projection(self.layer(self.log_mel(waveform)).mean(dim=(2, 3))))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    options = CompileOptions([load_target("rpi4")], calibration_windows=4)
    encoder = from_module("heard", {}, Heard().eval(), None)
    return compile_encoder(encoder, options, tmp_path_factory.mktemp("native") / "bundle")


def windows_of(count=6):
    noise = np.random.default_rng(1).normal(0, 0.1, 4_000 + count * 2_000).astype(np.float32)
    return [noise[start : start + 4_000] for start in range(0, count * 2_000, 2_000)]


def changed(bundle, path, change):
    """A copy of a bundle whose manifest says something else of its front end; unsigned, so that it is read."""
    copy = shutil.copytree(bundle.path, path)
    fields = json.loads((copy / "manifest.json").read_text())
    change(fields["additional_metadata"]["ssc"]["front_end"])
    (copy / "manifest.json").write_text(json.dumps(fields))
    return copy


def test_a_compiled_encoder_describes_its_front_end_and_is_cut_behind_it(bundle):
    info = bundle.manifest.info
    assert info.front_end.log_mel is not None
    assert info.front_end.log_mel.n_mels == 16
    assert info.cuts[1].name == "log_mel"


def test_a_device_computes_it_by_fft_and_gets_the_graphs_activations_at_every_cut(bundle, caplog):
    caplog.set_level(logging.INFO)
    engine, graph = Engine(bundle, "onnx-fp32"), Prefix(bundle)
    engine.ready()
    assert engine.prefix.front_end == "fft"
    assert graph.front_end == "graph"
    assert "an FFT of new frames" in caplog.text
    for window in windows_of():
        engine.prefix.start(window)
        graph.start(window)
        for cut in range(graph.last_cut + 1):
            np.testing.assert_allclose(engine.prefix.advance(cut), graph.advance(cut), atol=1e-4, rtol=0)


def test_what_the_graph_does_not_make_is_not_used(bundle, tmp_path, caplog):
    other = open_bundle(changed(bundle, tmp_path / "b", lambda said: said["log_mel"].update(f_min=90.0)))
    engine, graph = Engine(other, "onnx-fp32"), Prefix(bundle)
    engine.ready()
    assert engine.prefix.front_end == "graph"
    assert "runs in the graph, since the FFT's image is off by" in caplog.text
    for window in windows_of(2):
        assert np.array_equal(engine.embed(window), graph.embed(window))


def test_a_bundle_without_a_description_runs_in_the_graph(bundle, tmp_path):
    other = open_bundle(changed(bundle, tmp_path / "b", lambda said: said.pop("log_mel")))
    engine = Engine(other, "onnx-fp32")
    engine.ready()
    assert engine.prefix.front_end == "graph"


def test_the_next_generation_keeps_the_front_end_loaded(bundle):
    first = Engine(bundle, "onnx-fp32")
    first.ready()
    second = Engine(bundle, "onnx-fp32", previous=first)
    assert second.prefix.missing == []
    assert second.prefix.front_end == "fft"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda said: said["log_mel"].update(n_mels=17), r"front_end.log_mel: makes an image of"),
        (lambda said: said["log_mel"].update(hop_length=100), r"front_end.log_mel: makes an image of"),
        (lambda said: said["log_mel"].update(f_max=8001.0), r"front_end.log_mel: f_max must be at most 8000"),
        (lambda said: said["log_mel"].update(f_max=10.0), "f_min must be below f_max"),
        (lambda said: said["log_mel"].update(n_fft=511), "n_fft must be even"),
        (lambda said: said["log_mel"].update(n_fft=1 << 20), "n_fft"),
        (lambda said: said["log_mel"].update(n_fft=1 << 14, n_mels=1024), "n_mels times the bins"),
        (lambda said: said["log_mel"].update(win_length=513), "win_length"),
        (lambda said: said["log_mel"].update(power=1.5), "power must be 1 or 2"),
        (lambda said: said["log_mel"].update(eps=0.0), "eps"),
        (lambda said: said["log_mel"].update(scale=1e300), "scale"),
        (lambda said: said["log_mel"].update(mel_scale="bark"), "mel_scale"),
        (lambda said: said["log_mel"].update(mel_scale="kaldi", mel_norm="slaney"), "mel_norm must be none"),
        (lambda said: said["log_mel"].update(upsample=10**6), "upsample"),
        (lambda said: said["log_mel"].update(surprise=1), "surprise"),
        (lambda said: said["log_mel"].pop("n_fft"), "n_fft"),
    ],
)
def test_a_description_that_cannot_be_is_refused_in_one_line(bundle, tmp_path, change, message):
    with pytest.raises(BundleError, match=message) as refusal:
        open_bundle(changed(bundle, tmp_path / "b", change))
    assert "\n" not in str(refusal.value)
    assert "manifest.json" in str(refusal.value)


def test_a_profile_times_the_way_the_device_takes(bundle):
    assert measure_profile(bundle, "rpi4", runs=3).machine["front_end"] == "fft"


def test_named_cuts_without_the_front_ends_are_kept_and_the_user_is_told(tmp_path):
    said = []
    options = CompileOptions([load_target("rpi4")], cuts="layer", calibration_windows=4)
    encoder = from_module("heard", {}, Heard().eval(), None)
    made: Bundle = compile_encoder(encoder, options, tmp_path / "bundle", notice=said.append)
    assert [cut.name for cut in made.manifest.info.cuts] == ["waveform", "layer", "normalize"]
    assert made.manifest.info.front_end.log_mel is None
    assert any("with log_mel among the cuts" in line for line in said)


def test_blocks_in_tflite_get_the_same_front_end(tmp_path):
    pytest.importorskip("litert_torch")
    options = CompileOptions([load_target("rpi4")], calibration_windows=4, formats=("tflite",))
    encoder = from_module("heard", {}, Heard().eval(), None)
    made = compile_encoder(encoder, options, tmp_path / "bundle")
    engine, graph = Engine(made, "tflite-fp32"), Prefix(made, "tflite-fp32")
    engine.ready()
    assert engine.prefix.front_end == "fft"
    for window in windows_of(3):
        np.testing.assert_allclose(engine.embed(window), graph.embed(window), atol=1e-4, rtol=0)

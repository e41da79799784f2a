import shutil
import subprocess
import sys
from importlib.metadata import version

import numpy as np
import pytest
import soundfile
import torch
from scipy.special import softmax

import runtime_edge
from runtime_edge.errors import BundleError, HeadError, SignatureError, SourceError, UsageError
from runtime_edge.formats.bundle import asset_path
from runtime_edge.formats.minisign import SecretKey, write_key_pair
from runtime_edge.formats.records.head import Head, signature_of


@pytest.fixture(scope="module")
def encoder(small_bundle):
    return runtime_edge.open(str(small_bundle.path))


@pytest.fixture(scope="module")
def audio():
    return np.random.default_rng(0).uniform(-1, 1, 1024 + 3 * 512).astype(np.float32)


def test_one_import_and_one_call_give_the_torch_encoders_embeddings(encoder, audio, tiny_encoder):
    found = encoder.embed(audio)
    windows = np.stack([audio[start : start + 1024] for start in range(0, 3 * 512 + 1, 512)])
    with torch.inference_mode():
        expected = tiny_encoder.graph.module(torch.from_numpy(windows)).numpy()
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-4, rtol=0)


def test_it_says_what_it_takes(encoder):
    assert (encoder.sample_rate, encoder.window_samples, encoder.hop_samples) == (4000, 1024, 512)
    assert encoder.embedding_dim == 6


@pytest.mark.parametrize(("samples", "windows"), [(1, 1), (1023, 1), (1024, 1), (1535, 1), (1536, 2), (2048, 3)])
def test_there_is_one_window_each_hop(encoder, audio, samples, windows):
    assert encoder.embed(audio[:samples]).shape == (windows, 6)


def test_a_short_sound_is_padded_with_silence(encoder, audio):
    padded = np.concatenate([audio[:300], np.zeros(724, np.float32)])
    assert np.array_equal(encoder.embed(audio[:300]), encoder.embed(padded))


def test_lists_and_other_number_types_are_taken(encoder, audio):
    expected = encoder.embed(audio)
    assert np.array_equal(encoder.embed(audio.astype(np.float64)), expected)
    assert np.array_equal(encoder.embed(audio.tolist()), expected)
    assert np.array_equal(encoder.embed(np.repeat(audio, 2)[::2]), expected)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 0.0, 1.0, 1e6])
def test_whatever_the_sound_the_embedding_is_finite(resnet_bundle, value):
    sound = np.random.default_rng(0).uniform(-1, 1, 16000).astype(np.float32)
    sound[100:200] = value
    embedding = runtime_edge.open(str(resnet_bundle.path)).embed(sound)
    assert np.isfinite(embedding).all()
    assert np.linalg.norm(embedding, axis=1) == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize("waveform", [[], [[0.0]], np.zeros((2, 1024)), 0.0, None, [[1], [1, 2]], [1j]])
def test_what_is_no_waveform_is_refused(encoder, waveform):
    with pytest.raises(UsageError, match="waveform"):
        encoder.embed(waveform)


@pytest.mark.parametrize(("rate", "channels"), [(4000, 1), (4000, 3), (8000, 1), (11025, 2), (48000, 1)])
def test_a_file_of_any_rate_gives_what_its_waveform_gives(encoder, tmp_path, rate, channels):
    path = tmp_path / "tones.flac"
    time_s = np.arange(rate) / rate
    tones = 0.3 * np.sin(2 * np.pi * 300 * time_s) + 0.3 * np.sin(2 * np.pi * 1100 * time_s)
    soundfile.write(path, np.repeat(tones[:, None], channels, axis=1), rate, subtype="PCM_24")
    found = encoder.embed(path)
    assert found.shape == (6, 6)
    assert np.array_equal(encoder.embed(str(path)), found)
    np.testing.assert_allclose(encoder.embed(tones, sample_rate=rate), found, atol=1e-3, rtol=0)
    at_home = np.arange(4000) / 4000
    same = 0.3 * np.sin(2 * np.pi * 300 * at_home) + 0.3 * np.sin(2 * np.pi * 1100 * at_home)
    # At its ends a filter hears silence beside the sound.
    np.testing.assert_allclose(found[1:-1], encoder.embed(same)[1:-1], atol=5e-3, rtol=0)


def test_a_short_file_is_padded_as_a_short_waveform_is(encoder, audio, tmp_path):
    soundfile.write(tmp_path / "short.wav", audio[:300], 4000, subtype="FLOAT")
    assert np.array_equal(encoder.embed(tmp_path / "short.wav"), encoder.embed(audio[:300]))


@pytest.mark.parametrize("rate", [0, 999, -8000, 1e6, 8000.5, float("nan")])
def test_what_is_no_rate_is_refused(encoder, audio, rate):
    with pytest.raises(UsageError, match="sample_rate"):
        encoder.embed(audio, sample_rate=rate)


def test_files_that_cannot_be_read_are_named(encoder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "noise.wav").write_bytes(b"RIFF")
    for name in ("missing.wav", "mic", "-", "noise.wav"):
        with pytest.raises(SourceError, match=name):
            encoder.embed(name)
    with pytest.raises(UsageError, match="a directory; give one recording"):
        encoder.embed(tmp_path)
    with pytest.raises(UsageError, match="a file says its own"):
        encoder.embed("noise.wav", sample_rate=4000)


def test_it_says_what_it_is(small_bundle, head):
    shown = repr(runtime_edge.open(str(small_bundle.path), head=str(head[1])))
    assert shown.startswith("<EdgeEncoder toys:Tiny, generation 1, onnx-fp32: windows of 0.256 s every 0.128 s at 4000")
    assert shown.endswith("6 values, 3 labels>")


def test_a_key_is_required_when_one_is_given(small_bundle, resnet_bundle, signing_key, tmp_path):
    public = write_key_pair(signing_key, tmp_path / "key")
    other = write_key_pair(SecretKey(b"\1" * 8, bytes(32)), tmp_path / "other")
    runtime_edge.open(str(small_bundle.path), pub=str(public))
    with pytest.raises(SignatureError):
        runtime_edge.open(str(small_bundle.path), pub=str(other))
    with pytest.raises(SignatureError):
        runtime_edge.open(str(resnet_bundle.path), pub=str(public))
    with pytest.raises(SignatureError, match="missing"):
        runtime_edge.open(str(small_bundle.path), pub=str(tmp_path / "missing"))


def test_what_is_no_bundle_is_refused(tmp_path):
    with pytest.raises(BundleError, match="no such bundle directory"):
        runtime_edge.open(str(tmp_path / "missing"))


def test_a_damaged_block_is_refused_at_once(bundle_copy):
    path = next((bundle_copy / "shared_assets").glob("*/model.onnx"))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(BundleError, match=r"model\.onnx"):
        runtime_edge.open(str(bundle_copy))


@pytest.fixture
def head(small_bundle, signing_key, tmp_path):
    """A signed head for the small bundle, and its path."""
    weights = np.random.default_rng(1).normal(size=(3, 6)).astype("<f4") * 4
    head = Head(
        encoder=small_bundle.manifest.info.encoder.id, embedding_dim=6, generations=(1, 1), labels=("a", "b", "c"),
        scores_by="softmax", thresholds=(0.5, 0.5, 0.5), validation=None, created_by="test",
        bias=np.zeros(3, "<f4").tobytes(), weights=weights.tobytes(), model=None, temperature=1.0,
    )  # fmt: skip
    path = tmp_path / "head.json"
    path.write_bytes(head.to_json())
    (tmp_path / "head.json.minisig").write_text(signature_of(head.to_json(), signing_key))
    return head, path


def test_with_a_head_every_window_is_classified(small_bundle, head, audio):
    encoder = runtime_edge.open(str(small_bundle.path), head=str(head[1]))
    found = encoder.classify(audio)
    assert len(found) == 4
    for scores, labels in zip(softmax(encoder.embed(audio) @ weights_of(head[0]).T, axis=1), found, strict=True):
        assert list(labels) == [head[0].labels[place] for place in np.argsort(-scores)]
        assert list(labels.values()) == pytest.approx(sorted(scores, reverse=True), abs=1e-5)
        assert sum(labels.values()) == pytest.approx(1.0, abs=1e-5)
        assert labels.detected == tuple(label for label, score in labels.items() if score >= 0.5)
    assert [(labels.start_s, labels.end_s) for labels in found] == [
        (number * 512 / 4000, (number * 512 + 1024) / 4000) for number in range(4)
    ]
    assert repr(found[1]).startswith("<0.128 to 0.384 s: ")


def weights_of(head):
    return np.frombuffer(head.weights, "<f4").reshape(3, 6)


def test_an_exit_takes_the_place_of_the_blocks_behind_it(calibrated_bundle, audio, tmp_path):
    path, whole = str(calibrated_bundle.path), runtime_edge.open(str(calibrated_bundle.path))
    early = runtime_edge.open(path, exit="stem")
    found, expected = early.embed(audio), whole.embed(audio)
    assert found.shape == expected.shape
    assert np.median((found * expected).sum(axis=1)) > 0.9
    assert not np.allclose(found, expected)

    part = tmp_path / "part"
    shutil.copytree(path, part)
    for block in calibrated_bundle.manifest.info.blocks[1:]:
        asset_path(part, calibrated_bundle.manifest.variant(block, "onnx-fp32").file).unlink()
    assert np.array_equal(runtime_edge.open(str(part), exit="stem").embed(audio), found), "it needs no other block"
    with pytest.raises(UsageError, match=r"exit 'head': this bundle has no exit there; it has stem, down"):
        runtime_edge.open(path, exit="head")


def test_a_head_must_fit_and_be_signed_by_the_same_key(small_bundle, resnet_bundle, signing_key, head, tmp_path, audio):
    public = write_key_pair(signing_key, tmp_path / "key")
    runtime_edge.open(str(small_bundle.path), pub=str(public), head=str(head[1])).classify(audio)
    with pytest.raises(HeadError, match=r"head\.json: encoder: trained on"):
        runtime_edge.open(str(resnet_bundle.path), head=str(head[1]))
    (tmp_path / "head.json.minisig").unlink()
    with pytest.raises(SignatureError, match="missing"):
        runtime_edge.open(str(small_bundle.path), pub=str(public), head=str(head[1]))
    with pytest.raises(UsageError, match="no head"):
        runtime_edge.open(str(small_bundle.path)).classify(audio)


def test_a_device_runs_in_a_program_with_a_callback(small_bundle, head, tmp_path, audio, encoder):
    soundfile.write(tmp_path / "audio.wav", audio, 4000, subtype="FLOAT")
    seen = []
    report = runtime_edge.run(
        str(tmp_path / "audio.wav"), seen.append, bundle=small_bundle.path, state=tmp_path / "state", head=str(head[1]),
        realtime=False, results=[str(tmp_path / "results.jsonl")],
    )  # fmt: skip
    assert report["windows_captured"] == len(seen) == 4
    assert (tmp_path / "results.jsonl").read_text().count("\n") == 4
    for result, embedding, labels in zip(
        seen,
        encoder.embed(audio),
        runtime_edge.open(str(small_bundle.path), head=str(head[1])).classify(audio),
        strict=True,
    ):
        assert result.embedding == pytest.approx(embedding.tolist(), abs=1e-4)
        assert result.labels == pytest.approx(labels, abs=1e-3)
        assert result.detected == [label for label, score in labels.items() if score >= 0.5]


def test_a_run_with_wrong_settings_names_them(small_bundle, tmp_path):
    with pytest.raises(UsageError, match=r"runtime_edge\.run: 'bundel': no such setting, did you mean bundle"):
        runtime_edge.run("mic", print, bundel="bundle/")
    with pytest.raises(UsageError, match=r"runtime_edge\.run: threads is 'two'"):
        runtime_edge.run("mic", print, threads="two")
    with pytest.raises(UsageError, match="give broker"):
        runtime_edge.run("mic", print)
    with pytest.raises(HeadError, match="missing"):
        runtime_edge.run("a.wav", print, bundle=small_bundle.path, state=tmp_path / "s", head=tmp_path / "missing.json")


def test_its_names_are_pinned():
    assert runtime_edge.__all__ == ["RunSettings", "__version__", "open", "run"]
    assert runtime_edge.__version__ == version("streamsplit-audio")


def test_a_device_never_loads_what_it_does_not_have(small_bundle):
    code = (
        "import sys, runtime_edge, runtime_edge.device.device\n"
        f"print(runtime_edge.open({str(small_bundle.path)!r}).embed([0.0] * 1024).shape)\n"
        "ours = {'models', 'streamsplit_compile', 'runtime_server'}\n"
        "loaded = ({'torch', 'onnx', 'onnxscript'} | ours) & set(sys.modules)\n"
        "assert not loaded, loaded\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "(1, 6)\n"

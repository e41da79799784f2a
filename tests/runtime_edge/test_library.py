import subprocess
import sys

import numpy as np
import pytest
import torch

import runtime_edge
from runtime_edge.errors import BundleError, SignatureError, UsageError
from runtime_edge.minisign import SecretKey, write_key_pair


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


@pytest.mark.parametrize("waveform", [[], [[0.0]], np.zeros((2, 1024)), 0.0, "text", None, [[1], [1, 2]], [1j]])
def test_what_is_no_waveform_is_refused(encoder, waveform):
    with pytest.raises(UsageError, match="waveform"):
        encoder.embed(waveform)


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


def test_its_names_are_pinned():
    assert runtime_edge.__all__ == ["open"]


def test_a_device_never_loads_what_it_does_not_have(small_bundle):
    code = (
        "import sys, runtime_edge, runtime_edge.device\n"
        f"print(runtime_edge.open({str(small_bundle.path)!r}).embed([0.0] * 1024).shape)\n"
        "ours = {'models', 'streamsplit_compile', 'runtime_server'}\n"
        "loaded = ({'torch', 'onnx', 'onnxscript'} | ours) & set(sys.modules)\n"
        "assert not loaded, loaded\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "(1, 6)\n"

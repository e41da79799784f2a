"""A larger encoder that helps: its map, its answers, and what it refuses."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from example_records import head
from torch.nn import functional

from runtime_edge.errors import UsageError
from runtime_server.suffix.larger_encoder import LEAST_WINDOWS, OWN_SHARE, PENALTY, LargerEncoder
from streamsplit_compile.encoder.encoders import load_encoder, new_encoder, save_checkpoint

RATE, SAMPLES = 4000, 64


def windows(count, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(count, SAMPLES)).astype(np.float32))


def embedder(width, seed):
    """Windows to embeddings of unit norm, nonlinear."""
    weights = torch.from_numpy(np.random.default_rng(seed).normal(size=(SAMPLES, width)).astype(np.float32))
    return lambda samples: functional.normalize(torch.tanh(samples @ weights), dim=1)


def test_the_map_is_that_of_an_independent_ridge_regression():
    given, wanted, heard = embedder(24, 1), embedder(8, 2), windows(200)
    aligned = LargerEncoder(given, heard).aligned(wanted)
    fitted = np.arange(200) % 5 != 4
    x, y = given(heard).double().numpy()[fitted], wanted(heard).double().numpy()[fitted]
    scaled = (x - x.mean(0)) / x.std(0, ddof=1)
    # Least squares with PENALTY more rows that ask for zero: the same as a ridge.
    rows, zeros = np.sqrt(PENALTY) * np.eye(24), np.zeros((24, 8))
    weights = np.linalg.lstsq(np.vstack([scaled, rows]), np.vstack([y - y.mean(0), zeros]), rcond=None)[0]

    unseen = windows(10, seed=3)
    ours = (given(unseen).double().numpy() - x.mean(0)) / x.std(0, ddof=1) @ weights + y.mean(0)
    ours /= np.linalg.norm(ours, axis=1, keepdims=True)
    ours += OWN_SHARE * wanted(unseen).numpy()
    ours /= np.linalg.norm(ours, axis=1, keepdims=True)
    np.testing.assert_allclose(aligned.embed(unseen, wanted(unseen)).numpy(), ours, atol=1e-5)


def test_an_encoder_that_knows_the_same_comes_near_and_one_that_knows_nothing_does_not():
    own, heard = embedder(8, 2), windows(400)
    turned = torch.linalg.qr(windows(SAMPLES, seed=4)[:8, :8])[0]
    assert LargerEncoder(lambda samples: own(samples) @ turned, heard).aligned(own).cosine > 0.95
    assert LargerEncoder(lambda samples: own(torch.roll(samples, 7, 1)), heard).aligned(own).cosine < 0.5


def test_too_few_windows_are_refused():
    with pytest.raises(UsageError, match=f"give {LEAST_WINDOWS}"):
        LargerEncoder(embedder(8, 1), windows(LEAST_WINDOWS - 1))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A checkpoint that does not say that its weights are random."""
    path = tmp_path_factory.mktemp("larger") / "larger.pt"
    module, config = new_encoder("mobilenet_v3_small", {"width": 0.35})
    save_checkpoint("mobilenet_v3_small", config, module, path)
    return load_encoder(path)


def test_what_cannot_help_is_refused_in_one_line(trained, small_bundle, tmp_path):
    front_end = small_bundle.manifest.info.front_end
    with pytest.raises(UsageError, match=f"--larger-head: it is for encoder enc; --larger is {trained.id}"):
        LargerEncoder.of(trained, front_end, tmp_path, 0, head("enc"))
    with pytest.raises(UsageError, match="needs --calibrate"):
        LargerEncoder.of(trained, front_end, None, 0)
    with pytest.raises(UsageError, match="are random; give an encoder that is trained"):
        LargerEncoder.of(replace(trained, untrained=True), front_end, tmp_path, 0)
    with pytest.raises(UsageError, match="takes 16000 samples at 16000 Hz, devices send 1024 at 4000 Hz"):
        LargerEncoder.of(trained, front_end, tmp_path, 0)

import csv
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from streamsplit_models.mn import Lift, mn

pytestmark = pytest.mark.integration

CHECKPOINT = "mn04_as_mAP_432.pt"
PUBLISHED_PARAMETERS = 983_599  # width 0.4, classifier included
CLASSIFIER_PARAMETERS = (384 * 512 + 512) + (512 * 527 + 527)


def directory(variable):
    path = os.environ.get(variable)
    if not path:
        pytest.skip(f"set {variable} to run this")
    return Path(path)


@pytest.fixture(scope="module")
def published():
    file = directory("SSC_TEST_WEIGHTS") / CHECKPOINT
    if not file.is_file():
        pytest.skip(f"SSC_TEST_WEIGHTS has no {CHECKPOINT}, a file of EfficientAT's releases")
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("rate", [16_000, 32_000])
def test_contract(rate, check_encoder):
    encoder = mn(input_rate=rate)
    check_encoder(encoder, 384)
    assert (encoder.sample_rate, encoder.window_samples) == (rate, rate)
    assert encoder.front_end.frames == 100


def test_fresh_encoder_depends_on_its_seed_alone():
    first, again, other = mn(seed=3), mn(seed=3), mn(seed=4)
    torch.testing.assert_close(first.state_dict(), again.state_dict(), rtol=0, atol=0)
    assert not torch.equal(first.features[0][0].weight, other.features[0][0].weight)


def test_parameters_are_those_published():
    assert sum(p.numel() for p in mn().parameters()) == PUBLISHED_PARAMETERS - CLASSIFIER_PARAMETERS


def test_behind_a_hidden_layer_the_contract_holds(check_encoder):
    check_encoder(mn(0.1, hidden=20), 21)


@pytest.mark.parametrize("length", [0.0, 1e-3, 1.0, 2.9])
def test_a_lifted_vector_has_length_1_and_gives_the_vector_back(length):
    vectors = torch.nn.functional.normalize(torch.randn(5, 7, generator=torch.Generator().manual_seed(0))) * length
    lifted = Lift(3.0)(vectors)
    torch.testing.assert_close(lifted.norm(dim=1), torch.ones(5))
    torch.testing.assert_close(lifted[:, :-1] * 3.0, vectors)


def test_a_vector_beyond_reach_keeps_its_direction_and_a_gradient():
    vectors = torch.tensor([[30.0, 40.0], [0.0, 0.0]], requires_grad=True)
    lifted = Lift(3.0)(vectors)
    torch.testing.assert_close(lifted, torch.tensor([[0.6, 0.8, 0.0], [0.0, 0.0, 1.0]]), atol=1e-5, rtol=0)
    lifted.sum().backward()
    assert vectors.grad.isfinite().all()


@pytest.mark.parametrize(("width", "embedding_dim"), [(0.1, 96), (1.0, 960)])
def test_other_widths(width, embedding_dim):
    assert mn(width).embedding_dim == embedding_dim


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"input_rate": 44_100}, "input_rate"),
        ({"input_rate": 0}, "input_rate"),
        ({"window_seconds": "1"}, "window_seconds"),
        ({"hop_seconds": 0}, "hop_seconds"),
        ({"width_mult": 0}, "width"),
        ({"hidden": -1}, "hidden"),
        ({"hidden": True}, "hidden"),
        ({"hidden": 8, "reach": 0}, "reach"),
        ({"hidden": 8, "reach": "long"}, "reach"),
    ],
)
def test_a_wrong_argument_is_named(fields, named):
    with pytest.raises(ValueError, match=named):
        mn(**fields)


def test_a_checkpoint_with_other_keys_is_refused():
    encoder = mn()
    state = dict(encoder.state_dict(), stranger=torch.zeros(1))
    with pytest.raises(RuntimeError, match="stranger"):
        encoder.load_state_dict(state)


def test_published_weights_load_strictly(published):
    encoder = mn()
    encoder.load_state_dict(published)
    kept = {key: value for key, value in published.items() if not key.startswith("classifier.")}
    torch.testing.assert_close(dict(encoder.state_dict()), kept, rtol=0, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize(("window_seconds", "least"), [(5.0, 0.98), (1.0, 0.955)])
def test_linear_probe_on_esc10(published, window_seconds, least):
    """Official folds, mean embedding of a five-second clip: whole, or in nine windows of one second."""
    soundfile = pytest.importorskip("soundfile")
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    root = directory("SSC_TEST_AUDIO") / "esc10"
    encoder = mn(window_seconds=window_seconds)
    encoder.load_state_dict(published)
    with (root / "labels.csv").open() as file:
        rows = list(csv.DictReader(file))
    features = []
    for row in rows:
        clip, rate = soundfile.read(root / row["filename"], dtype="float32")
        assert rate == encoder.sample_rate
        windows = torch.from_numpy(clip).unfold(0, encoder.window_samples, encoder.front_end.hop_samples)
        with torch.no_grad():
            features.append(encoder(windows).mean(dim=0).numpy())
    x = np.array(features)
    y = np.array([row["class"] for row in rows])
    folds = np.array([int(row["fold"]) for row in rows])

    correct = 0
    for fold in range(1, 6):
        train, test = folds != fold, folds == fold
        scaler = StandardScaler().fit(x[train])
        probe = LogisticRegression(max_iter=1000).fit(scaler.transform(x[train]), y[train])
        correct += (probe.predict(scaler.transform(x[test])) == y[test]).sum()

    assert len(rows) == 400
    assert correct / len(rows) >= least

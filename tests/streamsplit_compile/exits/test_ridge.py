"""The closed form against scikit-learn's ridge regression."""

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge

from streamsplit_compile.bottleneck.block import Layout
from streamsplit_compile.exits.exit_map import RANK
from streamsplit_compile.exits.ridge import PENALTY, basis_of, fit_exit

LAYOUT = Layout((1, 6, 4, 5), 1, (1, 1))
FEATURES = 48


@pytest.fixture(scope="module")
def data():
    """Statistics (n, features) of unequal spread, and embeddings (n, d) that follow from them nearly."""
    random = np.random.default_rng(0)
    x = random.normal(size=(600, FEATURES)) * np.geomspace(0.01, 100, FEATURES) + 3
    y = np.tanh((x - 3) / np.geomspace(0.01, 100, FEATURES) @ random.normal(size=(FEATURES, 80)) / 7)
    return x.astype(np.float32), (y + 0.05 * random.normal(size=y.shape)).astype(np.float32)


def fitted(x, y):
    block = fit_exit(LAYOUT, torch.from_numpy(x), torch.from_numpy(y), basis_of(torch.from_numpy(y)))
    with torch.inference_mode():
        return block, block.from_statistics(torch.from_numpy(x)).numpy()


@pytest.mark.parametrize("count", [600, 40], ids=["many windows", "fewer than statistics"])
def test_it_is_the_ridge_regression_of_scikit_learn_onto_the_first_components(data, count):
    x, y = (values[:count] for values in data)
    scaled = (x.astype(np.float64) - x.mean(0)) / x.std(0)
    reduced = PCA(min(RANK, count)).fit(y.astype(np.float64))
    expected = reduced.inverse_transform(Ridge(alpha=PENALTY).fit(scaled, reduced.transform(y)).predict(scaled))

    block, found = fitted(x, y)

    np.testing.assert_allclose(found, expected, atol=2e-3)
    assert block.inner.out_features == min(RANK, count)
    assert not block.unit


def test_embeddings_of_unit_norm_are_answered_with_such(data):
    x, y = data
    unit = y / np.linalg.norm(y, axis=1, keepdims=True)
    block, found = fitted(x, unit)

    assert block.unit
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1.0, atol=1e-5)
    assert np.median((found * unit).sum(1)) > 0.8


def test_statistics_that_never_change_and_few_windows_do_no_harm(data):
    x, y = data
    still = x.copy()
    still[:, :5] = 1.0
    for count in (32, 600):
        _, found = fitted(still[:count], y[:count])
        assert np.isfinite(found).all()
        assert np.abs(found).max() < 3


def test_the_same_windows_give_the_same_bytes(data):
    x, y = data
    assert fitted(x, y)[0].to_bytes() == fitted(x, y)[0].to_bytes()

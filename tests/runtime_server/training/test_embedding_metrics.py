import numpy as np
import pytest
import torch
from scipy.spatial.distance import pdist
from scipy.stats import entropy
from sklearn.model_selection import LeaveOneOut, cross_val_score
from sklearn.neighbors import KNeighborsClassifier

from runtime_edge.errors import UsageError
from runtime_server.training.embedding_metrics import alignment, effective_rank, knn_accuracy, uniformity


@pytest.fixture
def space():
    rng = np.random.default_rng(0)
    labels = rng.integers(4, size=80) * 10
    centres = rng.standard_normal((40, 12))
    points = centres[labels] + 1.5 * rng.standard_normal((80, 12))
    return points / np.linalg.norm(points, axis=1, keepdims=True), labels


def test_alignment_is_the_mean_squared_distance_of_pairs(space):
    x, y = space[0][:40], space[0][40:]
    expected = np.mean([np.sum((a - b) ** 2) for a, b in zip(x, y, strict=True)])
    assert alignment(torch.tensor(x), torch.tensor(y)) == pytest.approx(expected)


def test_uniformity_is_the_log_of_the_mean_gaussian_potential(space):
    expected = np.log(np.mean(np.exp(-2 * pdist(space[0]) ** 2)))
    assert uniformity(torch.tensor(space[0])) == pytest.approx(expected, rel=1e-5)
    assert uniformity(torch.ones(5, 3)) == 0
    assert uniformity(torch.ones(1, 3)) == 0


def test_effective_rank_is_the_exponential_entropy_of_singular_values(space):
    values = np.linalg.svd(space[0], compute_uv=False)
    assert effective_rank(torch.tensor(space[0])) == pytest.approx(np.exp(entropy(values)))


def test_effective_rank_of_known_spaces():
    assert effective_rank(torch.eye(7)) == pytest.approx(7)
    assert effective_rank(torch.ones(9, 4)) == pytest.approx(1, abs=1e-4)
    assert effective_rank(torch.zeros(3, 3)) == 0


@pytest.mark.parametrize("neighbours", [1, 5, 8])
def test_leave_one_out_knn_equals_scikit_learns(space, neighbours):
    model = KNeighborsClassifier(neighbours, metric="cosine")
    expected = cross_val_score(model, *space, cv=LeaveOneOut()).mean()
    assert 0.3 < expected < 1
    assert knn_accuracy(*map(torch.tensor, space), neighbours) == pytest.approx(expected)


@pytest.mark.parametrize("neighbours", [1, 6])
def test_knn_of_queries_equals_scikit_learns(space, neighbours):
    points, labels = space
    model = KNeighborsClassifier(neighbours, metric="cosine").fit(points[:50], labels[:50])
    expected = model.score(points[50:], labels[50:])
    tensors = map(torch.tensor, (points[:50], labels[:50], points[50:], labels[50:]))
    reference, known, queries, truth = tensors
    assert knn_accuracy(reference, known, neighbours, queries, truth) == pytest.approx(expected)


def test_too_few_windows_is_one_clear_error():
    with pytest.raises(UsageError, match="5 neighbours requested of 3 windows"):
        knn_accuracy(torch.eye(4), torch.arange(4))

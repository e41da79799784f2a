"""The kernels and the regression are those of scikit-learn."""

import numpy as np
import pytest
from sklearn.kernel_ridge import KernelRidge
from sklearn.metrics.pairwise import linear_kernel as products
from sklearn.metrics.pairwise import rbf_kernel

from streamsplit_compile.audit.kernel_regression import gaussian_kernel, linear_kernel, ridge_scores


@pytest.fixture
def rows():
    return np.random.default_rng(0).normal(size=(30, 5))


@pytest.fixture
def known():
    return np.arange(30) % 3 > 0


def test_the_linear_kernel(rows):
    np.testing.assert_allclose(linear_kernel(rows), products(rows) / 5, atol=1e-12)


def test_the_gaussian_kernel_is_as_wide_as_the_median_distance(rows, known):
    distances = np.square(rows[:, None] - rows[known]).sum(2)
    expected = rbf_kernel(rows, rows[known], gamma=1 / np.median(distances[distances > 1e-9]))
    np.testing.assert_allclose(gaussian_kernel(rows, known), expected, atol=0.02)  # zeros that rounding left
    assert gaussian_kernel(rows).shape == (30, 30)


def test_rows_that_are_all_alike_have_a_kernel():
    assert (gaussian_kernel(np.zeros((4, 3))) == 1).all()


def test_the_regression(rows, known):
    kernel = gaussian_kernel(rows, known)
    targets = np.eye(3)[np.arange(30) % 3][known]
    reference = KernelRidge(alpha=0.1, kernel="precomputed").fit(kernel[known], targets - targets.mean(0))
    np.testing.assert_allclose(
        ridge_scores(kernel, known, targets, 0.1), reference.predict(kernel) + targets.mean(0), atol=1e-9
    )

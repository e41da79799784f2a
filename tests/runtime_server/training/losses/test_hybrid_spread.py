"""The alternatives to L_SW: mse, kl, mmd."""

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.stats import norm
from sklearn.metrics.pairwise import rbf_kernel

from runtime_server.training.losses.hybrid import SPREAD_TERMS
from runtime_server.training.losses.kl import kl_to_uniform
from runtime_server.training.losses.mmd import mmd
from runtime_server.training.losses.mse import mse_to_uniform
from runtime_server.training.losses.uniform import uniform_on_sphere

pytestmark = pytest.mark.integration


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def sphere(count, width=8, seed=1):
    return uniform_on_sphere(count, torch.empty(1, width, dtype=torch.float64), seeded(seed))


def test_mse_is_the_squared_error_of_both_moments():
    z = sphere(30).numpy()
    moment = np.mean([np.outer(row, row) for row in z], axis=0)
    expected = np.sum(z.mean(0) ** 2) + np.linalg.norm(moment - np.eye(8) / 8, "fro") ** 2
    assert mse_to_uniform(torch.tensor(z)).item() == pytest.approx(expected)


def test_mse_vanishes_where_the_moments_are_the_uniform_laws():
    cross = torch.cat([torch.eye(8), -torch.eye(8)])
    assert mse_to_uniform(cross).item() == pytest.approx(0, abs=1e-9)


def test_kl_is_that_of_the_fitted_gaussians():
    z = sphere(50, width=3) * torch.tensor([1.0, 0.5, 0.2], dtype=torch.float64)
    target = norm(0, np.sqrt(1 / 3))
    total = 0.0
    for column in z.numpy().T:
        fitted = norm(column.mean(), np.sqrt(column.var() + 1e-3 / 3))
        low, high = fitted.mean() - 10 * fitted.std(), fitted.mean() + 10 * fitted.std()
        total += quad(lambda x, f=fitted: f.pdf(x) * (f.logpdf(x) - target.logpdf(x)), low, high)[0]
    assert kl_to_uniform(z).item() == pytest.approx(total / 3, rel=1e-6)


def test_mmd_equals_scikit_learns_kernel_means():
    x, y = sphere(12, seed=1), sphere(20, seed=2) * 0.5
    xx, yy, xy = (rbf_kernel(a, b, gamma=2.0).mean() for a, b in ((x, x), (y, y), (x, y)))
    assert mmd(x, y).item() == pytest.approx(xx + yy - 2 * xy, rel=1e-9)


@pytest.mark.parametrize("name", SPREAD_TERMS)
def test_every_term_ranks_uniform_below_clustered_below_collapsed(name):
    uniform = sphere(512, 16)
    clustered = torch.nn.functional.normalize(sphere(4, 16).repeat(128, 1) + 0.1 * uniform, dim=1)
    collapsed = uniform[:1].expand(512, 16)
    low, middle, high = (SPREAD_TERMS[name](z, seeded(3)).item() for z in (uniform, clustered, collapsed))
    assert low < middle < high


@pytest.mark.parametrize("name", SPREAD_TERMS)
def test_descending_any_term_spreads_a_cluster(name):
    start = torch.nn.functional.normalize(torch.ones(64, 8) + 0.3 * sphere(64).float(), dim=1)
    z, generator = start.clone().requires_grad_(), seeded()
    optimiser = torch.optim.Adam([z], 0.05)
    for _ in range(100):
        optimiser.zero_grad()
        SPREAD_TERMS[name](torch.nn.functional.normalize(z, dim=1), generator).backward()
        optimiser.step()
    after = torch.nn.functional.normalize(z.detach(), dim=1)
    assert after.mean(0).norm() < 0.3 < 0.9 < start.mean(0).norm()


@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("name", SPREAD_TERMS)
def test_gradients_are_finite_for_identical_embeddings_and_tiny_batches(name, count):
    z = torch.eye(8)[:1].repeat(count, 1).requires_grad_()
    value = SPREAD_TERMS[name](z, seeded())
    value.backward()
    assert value.isfinite()
    assert z.grad.isfinite().all()

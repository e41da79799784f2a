"""Barlow Twins against numpy's correlation coefficients."""

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from runtime_server.training.losses.objectives.barlow_twins import BarlowTwins, cross_correlation
from runtime_server.training.losses.objectives.interface import Views

COUNT, WIDTH = 20, 6


def views():
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(COUNT, WIDTH, generator=generator, dtype=torch.float64)
    second = first + 0.5 * torch.randn(COUNT, WIDTH, generator=generator, dtype=torch.float64)
    return normalize(first, dim=1), normalize(second, dim=1)


def test_the_cross_correlation_is_numpys():
    first, second = views()
    expected = np.corrcoef(first.numpy().T, second.numpy().T)[:WIDTH, WIDTH:]
    assert np.allclose(cross_correlation(first, second).numpy(), expected, atol=1e-4)


def test_is_the_papers_loss():
    first, second = views()
    c = np.corrcoef(first.numpy().T, second.numpy().T)[:WIDTH, WIDTH:]
    expected = sum((1 - c[i, i]) ** 2 for i in range(WIDTH))
    expected += 5e-3 * sum(c[i, j] ** 2 for i in range(WIDTH) for j in range(WIDTH) if i != j)
    made = BarlowTwins((), width=WIDTH, temperature=0.1, seed=0)
    assert made(Views(first, second)).item() == pytest.approx(expected, rel=1e-3)


def test_both_views_get_the_gradient_of_finite_differences():
    made = BarlowTwins((), width=WIDTH, temperature=0.1, seed=0)
    inputs = tuple(view.requires_grad_() for view in views())
    assert torch.autograd.gradcheck(lambda a, b: made(Views(a, b)), inputs)

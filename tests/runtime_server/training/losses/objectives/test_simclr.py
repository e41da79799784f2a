"""NT-Xent against the formula of the paper, written out in numpy."""

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from runtime_server.training.losses.objectives.interface import Views
from runtime_server.training.losses.objectives.simclr import SimCLR, nt_xent


def views(count=6, width=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [normalize(torch.randn(count, width, generator=generator, dtype=torch.float64), dim=1) for _ in range(2)]


def reference(first, second, temperature, ignore=None):
    """Equation 1 of Chen et al. 2020: the mean of l(i, j) over both orders of every pair, by loops."""
    z, count = np.concatenate([first, second]), len(first)

    def loss(i, j):
        total = 0.0
        for k in range(2 * count):
            near = ignore is not None and k % count != i % count and ignore[i % count, k % count]
            if k != i and not near:
                total += np.exp(z[i] @ z[k] / temperature)
        return -np.log(np.exp(z[i] @ z[j] / temperature) / total)

    return np.mean([loss(i, (i + count) % (2 * count)) for i in range(2 * count)])


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_is_the_papers_loss_of_both_views(temperature):
    first, second = views()
    expected = reference(first.numpy(), second.numpy(), temperature)
    assert nt_xent(first, second, temperature).item() == pytest.approx(expected)
    made = SimCLR((), width=5, temperature=temperature, seed=0)
    assert made(Views(first, second)).item() == pytest.approx(expected)


def test_windows_that_may_be_the_same_are_no_negatives_in_either_view():
    first, second = views()
    ignore = torch.eye(6, dtype=torch.bool)
    ignore[0, 3] = ignore[3, 0] = ignore[4, 5] = True
    expected = reference(first.numpy(), second.numpy(), 0.2, ignore.numpy())
    made = SimCLR((), width=5, temperature=0.2, seed=0)
    assert made(Views(first, second, ignore=ignore)).item() == pytest.approx(expected)
    assert expected < nt_xent(first, second, 0.2).item()


def test_both_views_get_the_gradient_of_finite_differences():
    inputs = tuple(view.requires_grad_() for view in views(3, 3))
    assert torch.autograd.gradcheck(lambda a, b: nt_xent(a, b, 0.5), inputs)


def test_a_batch_of_one_has_no_negatives_and_no_loss():
    first, second = views(1)
    assert nt_xent(first, second, 0.1).item() == 0

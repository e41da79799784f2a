import numpy as np
import ot
import pytest
import torch

from runtime_server.training.losses.sliced_wasserstein import (
    PROJECTIONS,
    sliced_wasserstein,
    sliced_wasserstein_to_uniform,
)
from runtime_server.training.losses.uniform import uniform_on_sphere


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_equals_pot_on_the_same_projections():
    like = torch.empty(1, 16, dtype=torch.float64)
    first = uniform_on_sphere(40, like, seeded(1)) ** 3
    second = uniform_on_sphere(40, like, seeded(2))
    directions = uniform_on_sphere(PROJECTIONS, like, seeded(3))
    expected = ot.sliced_wasserstein_distance(first.numpy(), second.numpy(), projections=directions.numpy().T, p=2)
    assert sliced_wasserstein(first, second, directions).item() == pytest.approx(expected, rel=1e-9)


def test_of_a_collapsed_batch_approaches_the_root_of_two_over_d():
    # Over all directions E(z·θ)² = E(u·θ)² = 1/d and the two are independent, so SW² = 2/d.
    width, count = 8, 1500
    collapsed = torch.eye(width)[:1].expand(count, width)
    distance = sliced_wasserstein_to_uniform(collapsed, seeded(), projections=1500)
    assert distance.item() == pytest.approx(np.sqrt(2 / width), rel=0.03)


def test_of_a_uniform_batch_is_small_and_of_a_half_collapsed_one_between():
    like = torch.empty(1, 16)
    uniform = uniform_on_sphere(2000, like, seeded(5))
    half = torch.cat([uniform[:1000], uniform[:1].expand(1000, 16)])
    near, middle, far = (
        sliced_wasserstein_to_uniform(z, seeded(6)).item() for z in (uniform, half, uniform[:1].expand_as(half))
    )
    assert near < 0.03 < middle < far


def test_gradient_is_that_of_finite_differences():
    like = torch.empty(1, 4, dtype=torch.float64)
    z = (uniform_on_sphere(6, like, seeded(1)) * 0.9).requires_grad_()
    target, directions = uniform_on_sphere(6, like, seeded(2)), uniform_on_sphere(7, like, seeded(3))
    assert torch.autograd.gradcheck(lambda x: sliced_wasserstein(x, target, directions), (z,))


def test_gradient_at_distance_zero_is_zero():
    z = uniform_on_sphere(5, torch.empty(1, 4), seeded()).requires_grad_()
    sliced_wasserstein(z, z.detach(), torch.eye(4)).backward()
    assert torch.equal(z.grad, torch.zeros_like(z))


def test_the_generator_decides_the_draw():
    z = uniform_on_sphere(9, torch.empty(1, 4), seeded(1))
    generator = seeded(2)
    first, second = (sliced_wasserstein_to_uniform(z, generator) for _ in range(2))
    assert first == sliced_wasserstein_to_uniform(z, seeded(2))
    assert first != second


def test_uniform_samples_have_the_uniform_laws_moments():
    sample = uniform_on_sphere(20_000, torch.empty(1, 5), seeded())
    torch.testing.assert_close(sample.norm(dim=1), torch.ones(20_000))
    torch.testing.assert_close(sample.mean(0), torch.zeros(5), atol=0.02, rtol=0)
    torch.testing.assert_close(sample.T @ sample / 20_000, torch.eye(5) / 5, atol=0.02, rtol=0)

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal

from runtime_edge.policy.memory import GaussianMemory
from runtime_server.submodels.selector import Selector, balance_loss, responsibilities_of


def test_gates_start_as_the_shares_of_importance_for_all_windows():
    selector = Selector(3, {"a": torch.tensor([1.0, 3.0]), "b": torch.tensor([2.0, 2, 4])})
    gates = selector(torch.softmax(torch.randn(5, 3), 1))
    torch.testing.assert_close(gates["a"], torch.tensor([[0.25, 0.75]]).repeat(5, 1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(gates["b"], torch.tensor([[0.25, 0.25, 0.5]]).repeat(5, 1), rtol=1e-4, atol=1e-5)


def test_importance_is_the_mean_gate_of_a_softmax_of_a_matrix():
    selector, heard = Selector(2, {"a": torch.ones(3)}), np.array([[1.0, 0.0], [0.25, 0.75]], np.float32)
    matrix = np.array([[0.0, 1, 2], [3, 0, -1]], np.float32)
    with torch.no_grad():
        selector.matrices[0].copy_(torch.from_numpy(matrix))
    raised = np.exp(heard @ matrix)
    expected = (raised / raised.sum(1, keepdims=True)).mean(0)
    np.testing.assert_allclose(selector.importance(torch.from_numpy(heard))["a"], expected, rtol=1e-5)


def test_balance_is_the_squared_coefficient_of_variation():
    gates = {"a": torch.tensor([[0.1, 0.9], [0.3, 0.7]]), "b": torch.full((2, 4), 0.25)}
    means = np.array([0.2, 0.8])
    assert float(balance_loss(gates)) == pytest.approx((means.std() / means.mean()) ** 2 / 2, rel=1e-5)


def test_responsibilities_are_the_posterior_of_the_mixture():
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((200, 4)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    memory = GaussianMemory(3, 4, rate=0.05)
    memory.learn(rows)
    joint = np.stack([
        weight * multivariate_normal(mean, np.diag(variance)).pdf(rows[:20])
        for weight, mean, variance in zip(memory.weights, memory.means, memory.variances, strict=True)
    ])  # fmt: skip
    found = responsibilities_of(memory, torch.from_numpy(rows[:20]))
    np.testing.assert_allclose(found, (joint / joint.sum(0)).T, rtol=1e-3, atol=1e-6)

import numpy as np
import pytest
import scipy.stats
import torch

from runtime_server.adaptation.entropies import entropies, most, reliability

LOGITS = torch.from_numpy(np.random.default_rng(0).standard_normal((50, 7)) * 3).requires_grad_()


def test_entropies_are_those_of_scipy():
    scores = LOGITS.softmax(1).detach().numpy()
    np.testing.assert_allclose(entropies(LOGITS).detach().numpy(), scipy.stats.entropy(scores, axis=1), rtol=1e-9)


def test_a_certain_and_a_hopeless_window():
    certain, hopeless = entropies(torch.tensor([[1e4, 0.0, 0.0], [0.0, 0.0, 0.0]]))
    assert certain == 0
    assert hopeless == pytest.approx(np.log(3))


def test_reliability_falls_with_entropy_and_has_no_gradient():
    found = reliability(entropies(LOGITS), 7)
    assert not found.requires_grad
    expected = np.exp(0.4 * np.log(7) - entropies(LOGITS).detach().numpy())
    np.testing.assert_allclose(found.numpy(), expected)
    assert most(7) == pytest.approx(0.4 * np.log(7))

"""SimSiam's loss against numpy, and that its targets have no gradient."""

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from runtime_server.training.losses.objectives.interface import Views
from runtime_server.training.losses.objectives.simsiam import SimSiam, negative_cosine

COUNT, WIDTH = 6, 8


def views():
    generator = torch.Generator().manual_seed(0)
    return [normalize(torch.randn(COUNT, WIDTH, generator=generator), dim=1) for _ in range(2)]


def predicted(objective, z):
    """The predictor in numpy: linear, batch norm of the batch, ReLU, linear."""
    weights = {
        name: value.detach().numpy().astype(np.float64) for name, value in objective.predictor.named_parameters()
    }
    hidden = np.sqrt(WIDTH) * z @ weights["narrow.weight"].T
    hidden = (hidden - hidden.mean(0)) / np.sqrt(hidden.var(0) + 1e-5) * weights["gain"] + weights["shift"]
    return np.maximum(hidden, 0) @ weights["widen.weight"].T + weights["widen.bias"]


def minus_cosine(p, z):
    return -np.mean(np.sum(p * z, axis=1) / np.linalg.norm(p, axis=1) / np.linalg.norm(z, axis=1))


def test_is_the_papers_symmetric_loss():
    first, second = views()
    objective = SimSiam((), width=WIDTH, temperature=0.1, seed=3)
    one, other = (predicted(objective, view.numpy().astype(np.float64)) for view in (first, second))
    expected = minus_cosine(one, second.numpy()) / 2 + minus_cosine(other, first.numpy()) / 2
    assert objective(Views(first, second)).item() == pytest.approx(expected, rel=1e-4)


def test_no_gradient_flows_into_a_target():
    prediction, target = (view.requires_grad_() for view in views())
    negative_cosine(prediction, target).backward()
    assert prediction.grad.abs().sum() > 0
    assert target.grad is None


def test_a_view_learns_through_its_own_prediction_alone():
    objective = SimSiam((), width=WIDTH, temperature=0.1, seed=3).double()
    first, second = (view.double() for view in views())
    moved = first.clone().requires_grad_()
    objective(Views(moved, second)).backward()

    def through_the_prediction(view):
        p = predicted(objective, view)
        return minus_cosine(p, second.numpy()) / 2

    step, expected = 1e-6, np.zeros((COUNT, WIDTH))
    for place in np.ndindex(COUNT, WIDTH):
        sides = []
        for sign in (1, -1):
            view = first.numpy().copy()
            view[place] += sign * step
            sides.append(through_the_prediction(view))
        expected[place] = (sides[0] - sides[1]) / (2 * step)
    assert np.allclose(moved.grad.numpy(), expected, atol=1e-6)


def test_a_seed_draws_the_predictor_and_all_of_it_is_trained():
    def weights(seed):
        return SimSiam((), width=WIDTH, temperature=0.1, seed=seed).state_dict()

    assert all(torch.equal(value, weights(1)[name]) for name, value in weights(1).items())
    assert not torch.equal(weights(1)["predictor.narrow.weight"], weights(2)["predictor.narrow.weight"])
    objective = SimSiam((), width=WIDTH, temperature=0.1, seed=0)
    objective(Views(*views())).backward()
    assert len(list(objective.parameters())) == 5
    assert all(parameter.grad.abs().sum() > 0 for parameter in objective.parameters())

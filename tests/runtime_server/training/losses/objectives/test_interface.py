"""What holds of every objective."""

import pytest
import torch
from torch import nn
from torch.nn.functional import normalize

from runtime_server.training.losses import HybridConfig, HybridLoss
from runtime_server.training.losses.objectives import OBJECTIVES
from runtime_server.training.losses.objectives.interface import Views

WIDTH = 8


def made(name, segments=()):
    return OBJECTIVES[name](segments, width=WIDTH, temperature=0.1, seed=0)


def views(seed, count=16):
    generator = torch.Generator().manual_seed(seed)
    first = torch.randn(count, WIDTH, generator=generator)
    second = first + 0.3 * torch.randn(count, WIDTH, generator=generator)
    places = torch.arange(count) * 20
    return Views(normalize(first, dim=1), normalize(second, dim=1), windows=places, chains=torch.full((count,), seed))


@pytest.mark.parametrize("count", [1, 2, 6])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_gradients_are_finite_for_identical_embeddings_and_tiny_batches(name, count):
    objective = made(name)
    objective(views(1))
    z = normalize(torch.ones(count, WIDTH), dim=1).requires_grad_()
    chains = torch.zeros(count, dtype=torch.int64)
    loss = objective(Views(z, z, windows=torch.arange(count), chains=chains))
    loss.backward()
    assert loss.isfinite()
    assert z.grad is None or z.grad.isfinite().all()
    assert all(p.grad.isfinite().all() for p in objective.parameters() if p.grad is not None)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_state_makes_another_one_go_on_alike(name):
    blocks = [nn.Linear(3, WIDTH)]
    objective = made(name, blocks)
    for seed in range(3):
        objective(views(seed))
        objective.after_step()
    again = made(name, [nn.Linear(3, WIDTH)])
    again.load_state_dict(objective.state_dict())
    assert again(views(9)).item() == objective(views(9)).item()


@pytest.mark.parametrize("name", sorted(OBJECTIVES.keys() - {"simsiam"}))  # its predictor knows nothing yet
def test_views_that_agree_have_a_lower_loss_than_views_that_do_not(name):
    together, shuffled = made(name), made(name)
    for seed in range(2):
        good = views(seed)
        bad = Views(good.anchors, good.positives.roll(1, 0), windows=good.windows, chains=good.chains)
        losses = together(good).item(), shuffled(bad).item()
    assert losses[0] < losses[1]


@pytest.mark.parametrize("name", OBJECTIVES)
def test_is_the_task_beside_the_other_two_terms(name):
    given = views(3)
    loss = HybridLoss(HybridConfig(lambda1=0.5, lambda2=0.25), made(name))
    total, parts = loss(given.anchors, positives=given.positives, windows=torch.arange(16), chains=given.chains)
    assert parts.keys() == {"task", "spread", "laplacian", "total"}
    assert parts["task"] == pytest.approx(made(name)(given).item(), rel=1e-5, abs=1e-6)
    assert total.item() == pytest.approx(parts["task"] + 0.5 * parts["spread"] + 0.25 * parts["laplacian"], rel=1e-5)

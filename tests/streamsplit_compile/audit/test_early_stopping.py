"""A network is left as it was after its best epoch."""

import numpy as np
import pytest
import torch
from torch import nn

from streamsplit_compile.audit.early_stopping import train_until_worse


@pytest.fixture
def network():
    torch.manual_seed(0)
    return nn.Linear(2, 1)


def trained(network, qualities, places=65):
    """How often the quality was asked for, the sizes of batches of the first epoch, and the weights by epoch."""
    asked, sizes, weights = iter(qualities), [], []
    examples = torch.randn(places, 2, generator=torch.Generator().manual_seed(1))
    optimiser = torch.optim.SGD(network.parameters(), lr=0.01)

    def loss(batch):
        sizes.append(len(batch))
        return network(examples[batch]).square().mean()

    def quality():
        weights.append(network.weight.detach().clone())
        return next(asked)

    train_until_worse(network, np.arange(places), 32, optimiser, np.random.default_rng(0), loss, quality)
    return sizes, weights


def test_it_is_left_as_after_the_best_epoch_and_stops_four_later(network):
    _, weights = trained(network, [0.1, 0.5, 0.4, 0.5, 0.3, 0.2, 0.9])
    assert len(weights) == 6
    assert torch.equal(network.weight, weights[1])
    assert not network.training
    assert not torch.equal(weights[1], weights[2])


def test_it_trains_for_sixteen_epochs_at_most(network):
    _, weights = trained(network, range(100))
    assert len(weights) == 16
    assert torch.equal(network.weight, weights[-1])


def test_a_batch_of_one_is_left_out(network):
    sizes, _ = trained(network, range(100))
    assert sizes == [32, 32] * 16

import itertools

import numpy as np
import pytest
import torch

from runtime_edge.errors import UsageError
from runtime_server.submodels.sub_tasks import masks, wanted


def by_hand(gates, count, least, most):
    """The best choice among all."""
    tasks, groups = gates.shape
    rows = [np.isin(range(groups), own) for own in itertools.combinations(range(groups), count)]
    choices = (np.stack(choice) for choice in itertools.product(rows, repeat=tasks))
    allowed = (one for one in choices if least <= one.sum(0).min() and one.sum(0).max() <= most)
    return max(float((gates * one).sum()) for one in allowed)


@pytest.mark.parametrize(("count", "least", "most"), [(2, 0, 3), (2, 1, 2), (3, 1, 3), (4, 2, 3)])
def test_masks_are_the_best_of_all_choices(count, least, most):
    gates = np.random.default_rng(count + most).random((3, 5))
    found = masks(gates, count, least, most)
    assert (found.sum(1) == count).all()
    assert least <= found.sum(0).min() <= found.sum(0).max() <= most
    assert float((gates * found).sum()) == pytest.approx(by_hand(gates, count, least, most))


def test_limits_that_cannot_be_met_are_named():
    with pytest.raises(UsageError, match="2 sub-tasks with 1 of 4 groups each: no group can serve 1 to 2 of them"):
        masks(np.ones((2, 4)), 1, 1, 2)


def test_wanted_gates_are_those_of_the_mask_normalised():
    gates, mask = torch.tensor([[0.2, 0.3, 0.5]]), torch.tensor([1.0, 0.0, 1.0])
    torch.testing.assert_close(wanted(gates, mask), torch.tensor([[2 / 7, 0, 5 / 7]]))

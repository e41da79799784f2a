"""A small encoder with a block of each kind, and windows to study it on."""

import pytest
from divisible import divisible, sounds
from torch import nn

from streamsplit_models.mobile import BlockSpec


@pytest.fixture
def encoder():
    """An inverted residual, one that changes the shape, and a residual block."""
    specs = [BlockSpec(8, 3, 40, 8, True, nn.Hardswish, 1), BlockSpec(8, 3, 24, 16, False, nn.ReLU, 2)]
    return divisible(specs, nn.ReLU())


@pytest.fixture(scope="session")
def windows():
    return sounds()

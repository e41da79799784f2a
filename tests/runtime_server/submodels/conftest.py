"""A small encoder whose blocks can be divided, and windows."""

import pytest
from divisible import divisible, sounds
from torch import nn

from streamsplit_models.mobile import BlockSpec


@pytest.fixture
def encoder():
    """An inverted residual and a residual block: 5 groups of channels and 2."""
    return divisible([BlockSpec(8, 3, 36, 16, True, nn.Hardswish, 1)])


@pytest.fixture(scope="session")
def windows():
    return sounds()

"""A small encoder whose blocks can be divided, and windows."""

import pytest
import torch
from torch import nn

from streamsplit_models import FrontEnd, GlobalAveragePool, LogMel, Normalize
from streamsplit_models.encoder import Encoder
from streamsplit_models.initialise import start, synthetic_sounds
from streamsplit_models.mobile import BlockSpec, InvertedResidual, SqueezeExcite, conv_norm
from streamsplit_models.resnet import BasicBlock


class Small(Encoder):
    """An inverted residual with squeeze-and-excitation, and a residual block: 5 groups of channels and 2."""

    def __init__(self):
        front_end = FrontEnd(n_mels=16, window_samples=8000)
        super().__init__(front_end, 12)
        self.log_mel = LogMel(front_end)
        spec = BlockSpec(8, 3, 36, 16, True, nn.Hardswish, 1)
        self.features = nn.Sequential(
            conv_norm(1, 8, 3, 2, activation=nn.ReLU),
            InvertedResidual(spec, lambda block: SqueezeExcite(block.expanded, 8, nn.ReLU, nn.Sigmoid)),
            BasicBlock(16, 16, 1),
        )
        self.pool = GlobalAveragePool()
        self.projection = nn.Linear(16, 12)
        self.normalize = Normalize()
        self.stages = ("log_mel", *(f"features.{i}" for i in range(3)), "pool", "projection", "normalize")


@pytest.fixture
def encoder():
    return start(Small, 0)


@pytest.fixture(scope="session")
def windows():
    return synthetic_sounds(48, 16_000, 8000, torch.Generator().manual_seed(7))

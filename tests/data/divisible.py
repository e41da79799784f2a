"""Small encoders whose blocks have groups of channels, and windows for them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from streamsplit_models import FrontEnd, GlobalAveragePool, LogMel, Normalize
from streamsplit_models.encoder import Encoder
from streamsplit_models.initialise import start, synthetic_sounds
from streamsplit_models.mobile import BlockSpec, InvertedResidual, SqueezeExcite, conv_norm
from streamsplit_models.resnet import BasicBlock

WINDOW = 8000


class Divisible(Encoder):
    """Inverted residuals with squeeze-and-excitation, other layers, and a residual block of 16 channels."""

    def __init__(self, specs: Sequence[BlockSpec], *others: nn.Module) -> None:
        front_end = FrontEnd(n_mels=16, window_samples=WINDOW)
        super().__init__(front_end, 12)
        self.log_mel = LogMel(front_end)
        self.features = nn.Sequential(
            conv_norm(1, 8, 3, 2, activation=nn.ReLU),
            *(InvertedResidual(spec, lambda s: SqueezeExcite(s.expanded, 8, nn.ReLU, nn.Sigmoid)) for spec in specs),
            *others,
            BasicBlock(16, 16, 1),
        )
        self.pool = GlobalAveragePool()
        self.projection = nn.Linear(16, 12)
        self.normalize = Normalize()
        stages = (f"features.{place}" for place in range(len(self.features)))
        self.stages = ("log_mel", *stages, "pool", "projection", "normalize")


def divisible(specs: Sequence[BlockSpec], *others: nn.Module) -> Divisible:
    """One with seeded weights."""
    return start(lambda: Divisible(specs, *others), 0)


def sounds() -> torch.Tensor:
    """(48, samples) windows."""
    return synthetic_sounds(48, 16_000, WINDOW, torch.Generator().manual_seed(7))

"""Samples of the uniform law on the unit sphere, with which every spread term compares a batch."""

from __future__ import annotations

import torch
from torch import Tensor


def uniform_on_sphere(count: int, like: Tensor, generator: torch.Generator) -> Tensor:
    """`count` unit vectors [count, d] with the width, dtype and device of `like` [n, d].

    Drawn in float32 on the generator's device (the CPU), so that a seed gives the same vectors everywhere.
    """
    gaussian = torch.randn(count, like.shape[-1], generator=generator, device=generator.device)
    return torch.nn.functional.normalize(gaussian, dim=1).to(like)

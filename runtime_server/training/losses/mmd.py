"""Ablation term: squared maximum mean discrepancy between the batch and the uniform law (ours)."""

from __future__ import annotations

import torch
from torch import Tensor

from runtime_server.training.losses.uniform import uniform_on_sphere

SHARPNESS = 2.0


def mmd(first: Tensor, second: Tensor, sharpness: float = SHARPNESS) -> Tensor:
    """Biased MMD² of [n, d] and [m, d] under the kernel exp(-sharpness · |x - y|²); a scalar >= 0.

    The kernel is the one of Wang and Isola's uniformity, so this term and that metric agree.
    """

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        squares = x.square().sum(1)[:, None] + y.square().sum(1)[None] - 2 * x @ y.T
        return (-sharpness * squares).exp().mean()

    return kernel(first, first) + kernel(second, second) - 2 * kernel(first, second)


def mmd_to_uniform(embeddings: Tensor, generator: torch.Generator) -> Tensor:
    """MMD² between unit embeddings [n, d] and as many fresh uniform samples."""
    return mmd(embeddings, uniform_on_sphere(len(embeddings), embeddings, generator))

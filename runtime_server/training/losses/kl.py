"""Ablation term: KL divergence from the batch's law to the uniform law's, both as Gaussians (ours)."""

from __future__ import annotations

import torch
from torch import Tensor

_RELATIVE_FLOOR = 1e-3  # of 1/d: a collapsed coordinate has no variance, so its logarithm is undefined


def kl_to_uniform(embeddings: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """`KL(N(mean, diag var) || N(0, I/d)) / d` of unit embeddings [n, d]; a scalar.

    N(0, I/d) has the moments of the uniform law. Variances are diagonal, since a batch is often smaller than the width,
    and biased, so that a batch of one has them; 1e-3 of 1/d is added to each. Nothing is drawn: `generator` is accepted
    so that every spread term has the same signature.
    """
    width = embeddings.shape[1]
    mean = embeddings.mean(dim=0)
    ratio = (embeddings - mean).square().mean(dim=0) * width + _RELATIVE_FLOOR
    return 0.5 * (ratio + width * mean.square() - 1 - ratio.log()).mean()

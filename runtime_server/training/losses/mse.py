"""Ablation term: squared error of the batch's first two moments against the uniform law's (ours)."""

from __future__ import annotations

import torch
from torch import Tensor


def mse_to_uniform(embeddings: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """`|mean|² + |second moment - I/d|²_F` of unit embeddings [n, d]; a scalar.

    The uniform law on the sphere has mean 0 and second moment I/d. Nothing is drawn: `generator` is accepted so that
    every spread term has the same signature.
    """
    count, width = embeddings.shape
    moment = embeddings.T @ embeddings / count
    target = torch.eye(width, dtype=embeddings.dtype, device=embeddings.device) / width
    return embeddings.mean(dim=0).square().sum() + (moment - target).square().sum()

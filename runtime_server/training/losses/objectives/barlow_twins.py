"""Barlow Twins: pulls the cross-correlation of both views' embeddings to the identity (Zbontar et al. 2021)."""

from __future__ import annotations

from torch import Tensor

from runtime_server.training.losses.objectives.interface import Objective, Views
from runtime_server.training.losses.objectives.standardised import standardised

REDUNDANCY = 5e-3
"""Weight of the correlations between different coordinates."""


def cross_correlation(first: Tensor, second: Tensor) -> Tensor:
    """[d, d]: the correlation over the batch of each coordinate of `first` [n, d] with each of `second` [n, d]."""
    scale = first.shape[1] ** 0.5  # scale to coordinates of variance 1, as for a uniform batch
    return standardised(first * scale).T @ standardised(second * scale) / len(first)


class BarlowTwins(Objective):
    """`sum (1 - c_ii)² + 5e-3 sum c_ij²`. It has no negatives; a batch of one learns nothing."""

    def forward(self, views: Views) -> Tensor:
        """How far the cross-correlation is from the identity."""
        correlation = cross_correlation(views.anchors, views.positives)
        diagonal = correlation.diagonal()
        others = correlation.square().sum() - diagonal.square().sum()
        return (1 - diagonal).square().sum() + REDUNDANCY * others

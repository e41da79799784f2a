"""Barlow Twins: the cross-correlation of both views' embeddings shall be the identity (Zbontar et al. 2021)."""

from __future__ import annotations

from torch import Tensor

from runtime_server.training.losses.objectives.interface import Objective, Views
from runtime_server.training.losses.objectives.standardised import standardised

REDUNDANCY = 5e-3
"""Weight of the correlations between different coordinates."""


def cross_correlation(first: Tensor, second: Tensor) -> Tensor:
    """[d, d]: the correlation, over the batch, of each coordinate of unit [n, d] with each of the other view's."""
    scale = first.shape[1] ** 0.5  # to coordinates of variance 1, as those of a uniform batch then have
    return standardised(first * scale).T @ standardised(second * scale) / len(first)


class BarlowTwins(Objective):
    """`sum (1 - c_ii)² + 5e-3 sum c_ij²`. It has no negatives; a batch of one learns nothing."""

    def forward(self, views: Views) -> Tensor:
        """How far the cross-correlation is from the identity."""
        correlation = cross_correlation(views.anchors, views.positives)
        diagonal = correlation.diagonal()
        others = correlation.square().sum() - diagonal.square().sum()
        return (1 - diagonal).square().sum() + REDUNDANCY * others

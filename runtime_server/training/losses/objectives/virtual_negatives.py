"""SimCLR with virtual negatives (ours): InfoNCE whose negatives are the batch and samples of the mixture."""

from __future__ import annotations

from torch import Tensor

from runtime_server.training.losses.contrastive import info_nce
from runtime_server.training.losses.objectives.interface import Objective, Views


class VirtualNegatives(Objective):
    """`info_nce`, one way, with neighbours in time as further positives: what a batch of few devices can feed."""

    virtual_negatives = True

    def forward(self, views: Views) -> Tensor:
        """InfoNCE of the anchors."""
        return info_nce(views.anchors, views.positives, views.negatives, self._temperature, views.ignore, views.matches)

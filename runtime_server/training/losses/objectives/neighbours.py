"""InfoNCE over the batch, with neighbours in time as further positives (ours)."""

from __future__ import annotations

from torch import Tensor

from runtime_server.training.losses.contrastive import info_nce
from runtime_server.training.losses.objectives.interface import Objective, Views


class Neighbours(Objective):
    """`info_nce`, one direction: works for batches from few devices, whatever cuts the windows came in at."""

    def forward(self, views: Views) -> Tensor:
        """InfoNCE of the anchors."""
        return info_nce(views.anchors, views.positives, views.negatives, self._temperature, views.ignore, views.matches)

"""SimCLR: NT-Xent over two views (Chen et al. 2020, equation 1)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from runtime_server.training.losses.objectives.interface import Objective, Views


def nt_xent(first: Tensor, second: Tensor, temperature: float, ignore: Tensor | None = None) -> Tensor:
    """Mean NT-Xent of unit views [n, d] and [n, d] over all 2n of them; a scalar.

    The candidates for a view are all other views. `ignore` bool[n, n] removes pairs of windows from the negatives
    (ours), for both views of either window.
    """
    count = len(first)
    views = torch.cat([first, second])
    left_out = torch.eye(2 * count, dtype=torch.bool, device=views.device)
    if ignore is not None:
        own = torch.eye(count, dtype=torch.bool, device=views.device)
        left_out |= (ignore & ~own).repeat(2, 2)
    logits = (views @ views.T / temperature).masked_fill(left_out, float("-inf"))
    return nn.functional.cross_entropy(logits, torch.arange(2 * count, device=views.device).roll(count))


class SimCLR(Objective):
    """NT-Xent; windows that are near in time are not negatives."""

    def forward(self, views: Views) -> Tensor:
        """NT-Xent of both views."""
        return nt_xent(views.anchors, views.positives, self._temperature, views.ignore)

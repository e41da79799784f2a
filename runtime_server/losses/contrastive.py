"""L_task without labels: InfoNCE over the batch and virtual negatives (METHOD section 5)."""

from __future__ import annotations

import torch
from torch import Tensor

TEMPERATURE = 0.1


def info_nce(
    anchors: Tensor,
    positives: Tensor,
    negatives: Tensor | None = None,
    temperature: float = TEMPERATURE,
    ignore: Tensor | None = None,
) -> Tensor:
    """Mean InfoNCE of unit `anchors` [n, d] and their `positives` [n, d]; a scalar.

    An anchor's negatives are the other anchors' positives and its own virtual `negatives` [n, m, d].
    `ignore` bool[n, n] takes pairs (anchor, other's positive) out of the negatives, for instance those
    that are neighbours in time; its diagonal is not looked at. 0 when no negative is left.
    """
    logits = anchors @ positives.T / temperature
    if ignore is not None:
        own = torch.eye(len(anchors), dtype=torch.bool, device=anchors.device)
        logits = logits.masked_fill(ignore & ~own, float("-inf"))
    if negatives is not None:
        virtual = torch.einsum("nd,nmd->nm", anchors, negatives.to(anchors)) / temperature
        logits = torch.cat([logits, virtual], dim=1)
    target = torch.arange(len(anchors), device=anchors.device)
    return torch.nn.functional.cross_entropy(logits, target)

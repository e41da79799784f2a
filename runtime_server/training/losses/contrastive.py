"""L_task without labels: InfoNCE over the batch and virtual negatives (docs/method.md, section 5)."""

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
    matches: Tensor | None = None,
) -> Tensor:
    """Mean InfoNCE of unit `anchors` [n, d] and their `positives` [n, d]; a scalar.

    An anchor's negatives are the other anchors' positives and its own virtual `negatives` [n, m, d]. `ignore` bool[n,
    n] removes pairs (anchor, other's positive) from the negatives, such as neighbours in time; its diagonal is not
    used. `matches` bool[n, n] names positive pairs besides an anchor's own, such as neighbours in time. The loss is
    then the mean over an anchor's positives (the outer sum of Khosla et al. 2020), minus the logarithm of their number,
    below which no embedding could get. 0 if no negative is left and the positives are equally near.
    """
    own = torch.eye(len(anchors), dtype=torch.bool, device=anchors.device)
    wanted = own if matches is None else own | matches
    logits = anchors @ positives.T / temperature
    if ignore is not None:
        logits = logits.masked_fill(ignore & ~wanted, float("-inf"))
    candidates = logits
    if negatives is not None:
        virtual = torch.einsum("nd,nmd->nm", anchors, negatives.to(anchors)) / temperature
        candidates = torch.cat([logits, virtual], dim=1)
    missing = candidates.logsumexp(dim=1, keepdim=True) - logits
    count = wanted.sum(dim=1)
    return (missing.masked_fill(~wanted, 0.0).sum(dim=1) / count - count.to(logits).log()).mean()

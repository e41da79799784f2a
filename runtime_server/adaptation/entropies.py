"""The entropy of a head's scores, and how much a window counts because of it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from runtime_edge.formats.records.actions import ShipThresholds

MAX_ENTROPY = ShipThresholds().max_entropy
"""Of a reliable window, as a share of `ln labels` (CEMA, and EATA before it)."""


def entropies(logits: Tensor) -> Tensor:
    """Shannon entropies (n,) of the softmax of logits (n, labels), in nats."""
    logs = torch.log_softmax(logits, dim=1)
    return -(logs.exp() * logs).sum(dim=1)


def most(labels: int) -> float:
    """The largest entropy of a reliable window, in nats."""
    return MAX_ENTROPY * math.log(labels)


def reliability(entropy: Tensor, labels: int) -> Tensor:
    """`exp(E_max - H)` (n,), without a gradient: sure windows count more."""
    return torch.exp(most(labels) - entropy.detach())

"""Measures of an embedding space, with and without labels, which training reports."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from runtime_edge.errors import UsageError


def alignment(first: Tensor, second: Tensor, alpha: float = 2.0) -> float:
    """`mean |x - y|^alpha` over pairs of unit embeddings [n, d] (Wang and Isola 2020); lower is better."""
    return float((first - second).norm(dim=1).pow(alpha).mean())


def uniformity(embeddings: Tensor, sharpness: float = 2.0) -> float:
    """`ln mean exp(-t |x - y|²)` over pairs of [n, d] (Wang and Isola 2020); lower is better.

    0 if all embeddings coincide, and also for fewer than two embeddings.
    """
    if len(embeddings) < 2:
        return 0.0
    squares = torch.pdist(embeddings.float()).square()
    return float(torch.logsumexp(-sharpness * squares, 0) - torch.log(torch.tensor(float(len(squares)))))


def effective_rank(embeddings: Tensor) -> float:
    """`exp(H(p))` of the normalised singular values p of [n, d] (Roy and Vetterli 2007).

    Between 1, for a collapsed batch, and min(n, d). The mean is not subtracted. 0 if all values are zero.
    """
    values = torch.linalg.svdvals(embeddings.double())
    total = values.sum()
    if not total > 0:
        return 0.0
    shares = values / total
    return float(torch.special.entr(shares).sum().exp())


@dataclass(frozen=True)
class Geometry:
    """How embeddings are distributed on the sphere; NaN throughout if they are not finite."""

    alignment: float
    """Between two views of a window; lower is better."""
    uniformity: float
    """Of one view of each window; lower is better."""
    effective_rank: float
    """Of one view of each window; 1 if all embeddings coincide."""


def geometry(embeddings: Tensor, views: Tensor) -> Geometry:
    """The geometry of embeddings [n, d] and other views [n, d] of the same windows; both are normalised here."""
    if not bool(embeddings.isfinite().all() and views.isfinite().all()):
        return Geometry(math.nan, math.nan, math.nan)
    z, other = (torch.nn.functional.normalize(side.float(), dim=1) for side in (embeddings, views))
    return Geometry(alignment(z, other), uniformity(z), effective_rank(z))


def knn_accuracy(
    embeddings: Tensor,
    labels: Tensor,
    neighbours: int = 5,
    queries: Tensor | None = None,
    query_labels: Tensor | None = None,
) -> float:
    """Share of windows whose nearest others, by cosine, agree on the right label; ties go to the smaller label.

    `embeddings` [n, d] with `labels` int64[n] are the reference. Without `queries` [m, d] and `query_labels` [m], each
    window is compared with all others. Raises UsageError if there are too few.
    """
    reference = torch.nn.functional.normalize(embeddings.float(), dim=1)
    leave_out = queries is None or query_labels is None
    if queries is None or query_labels is None:
        asked, truth = reference, labels
    else:
        asked, truth = torch.nn.functional.normalize(queries.float(), dim=1), query_labels
    available = len(reference) - int(leave_out)
    if not 1 <= neighbours <= available or not len(asked):
        raise UsageError(f"kNN: {neighbours} neighbours requested of {available} windows")
    similarity = asked @ reference.T
    if leave_out:
        similarity.fill_diagonal_(float("-inf"))
    classes, numbered = torch.unique(labels, return_inverse=True)
    nearest = numbered[similarity.topk(neighbours, dim=1).indices]
    votes = torch.nn.functional.one_hot(nearest, len(classes)).sum(dim=1)
    return float((classes[votes.argmax(dim=1)] == truth).float().mean())

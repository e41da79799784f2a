"""Exits in closed form: ridge regression from an activation's statistics to embeddings."""

from __future__ import annotations

import torch
from torch import Tensor

from streamsplit_compile.bottleneck.block import Layout
from streamsplit_compile.exits.exit_map import RANK, ExitMap

PENALTY = 256.0
"""Penalty on the weights; with as many windows, it halves the weight of a statistic of unit variance."""
_FLAT = 1e-6
_UNIT = 1e-3
"""How far norms may differ from 1 for embeddings to count as unit vectors."""


def basis_of(embeddings: Tensor) -> Tensor:
    """The first principal components (d, at most RANK) of embeddings (n, d): the second layer of every exit.

    The largest value of each component is made positive, so that every fit gives the same components.
    """
    centred = embeddings.double() - embeddings.double().mean(0)
    chosen: Tensor = torch.linalg.eigh(centred.T @ centred)[1].flip(1)[:, : min(RANK, len(embeddings))]
    places = chosen.abs().argmax(0)
    signs: Tensor = chosen[places, torch.arange(chosen.shape[1])].sign()
    return chosen * signs


def fit_exit(layout: Layout, statistics: Tensor, embeddings: Tensor, basis: Tensor) -> ExitMap:
    """Fit the exit that comes closest to embeddings (n, d) from statistics (n, features) of the same windows."""
    block = ExitMap(layout, basis.shape[1], embeddings.shape[1], is_unit(embeddings))
    x, y = statistics.double(), embeddings.double()
    mean, scale, centre = x.mean(0), x.std(0, correction=0).clamp_min(_FLAT), y.mean(0)
    weights = ridge((x - mean) / scale, (y - centre) @ basis, PENALTY) / scale[:, None]
    with torch.no_grad():
        block.inner.weight.copy_(weights.T)
        block.inner.bias.copy_(-(mean @ weights))
        block.outer.weight.copy_(basis)
        block.outer.bias.copy_(centre)
    return block.eval()


def ridge(x: Tensor, y: Tensor, strength: float) -> Tensor:
    """Weights (features, m), float64, from x (n, features) to y (n, m) that minimise `|x W - y|^2 + strength |W|^2`.

    Of two equivalent forms it solves the one with the smaller matrix.
    """
    small = min(x.shape)
    penalty = strength * torch.eye(small, dtype=torch.float64)
    if small == x.shape[1]:
        found: Tensor = torch.linalg.solve(x.T @ x + penalty, x.T @ y)
        return found
    found = x.T @ torch.linalg.solve(x @ x.T + penalty, y)
    return found


def is_unit(embeddings: Tensor) -> bool:
    """Whether embeddings (n, d) are of unit norm."""
    return bool(((embeddings.norm(dim=1) - 1).abs() < _UNIT).all())

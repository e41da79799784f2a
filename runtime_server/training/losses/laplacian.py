"""L_Lap: Dirichlet energy of the embeddings over each device's temporal graph (docs/method.md, section 5)."""

from __future__ import annotations

import torch
from torch import Tensor

NEIGHBOURS = 5
HORIZON = 100


def temporal_edges(windows: Tensor, chains: Tensor, neighbours: int = NEIGHBOURS, horizon: int = HORIZON) -> Tensor:
    """Undirected edges int64[2, E] (i < j, each once, sorted) joining windows that are near in time.

    `windows` int64[n] are window indices, with gaps; `chains` int64[n] number the sequence that each belongs to (one
    for each boot of each device; indices of different chains are not comparable). In each chain, the windows of the
    last `horizon` indices are joined to their `neighbours` nearest available ones, whatever the gap; of two equally
    near windows, the one that comes first in the batch is used.
    """
    count = len(windows)
    if count < 2:
        return torch.empty(2, 0, dtype=torch.int64, device=windows.device)
    same = chains[:, None] == chains[None]
    newest = torch.where(same, windows[None], torch.iinfo(torch.int64).min).amax(dim=1)
    inside = newest - windows < horizon
    allowed = same & inside[:, None] & inside[None]
    allowed.fill_diagonal_(False)
    far = torch.iinfo(torch.int64).max
    gaps = torch.where(allowed, (windows[:, None] - windows[None]).abs(), far)
    nearest = gaps.sort(dim=1, stable=True).indices[:, :neighbours]
    chosen = torch.zeros_like(allowed).scatter_(1, nearest, True) & allowed
    return (chosen | chosen.T).triu(diagonal=1).nonzero().T


def edge_weights(edges: Tensor, windows: Tensor, sigma: float | None = None) -> Tensor:
    """float32[E]: ones, or `exp(-|t_i - t_j| / sigma)` with sigma in windows."""
    if sigma is None:
        return torch.ones(edges.shape[1], device=edges.device)
    return (-(windows[edges[0]] - windows[edges[1]]).abs().float() / sigma).exp()


def dirichlet_energy(embeddings: Tensor, edges: Tensor, weights: Tensor) -> Tensor:
    """`(1/|E|) · sum over edges of W_ij · |z_i - z_j|²` for [n, d], [2, E], [E]; 0 without edges.

    Each undirected edge counts once, so the sum is tr(ZᵀLZ) with L = D - W; over ordered pairs it would
    be 2·tr(ZᵀLZ).
    """
    squares = (embeddings[edges[0]] - embeddings[edges[1]]).square().sum(dim=1)
    return (weights.to(squares) * squares).sum() / max(edges.shape[1], 1)

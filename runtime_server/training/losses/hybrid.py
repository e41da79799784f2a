"""`L = L_task + lambda1 · L_SW + lambda2 · L_Lap` and its ablations (docs/method.md, section 5)."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from runtime_edge.errors import UsageError
from runtime_server.training.losses.contrastive import TEMPERATURE
from runtime_server.training.losses.kl import kl_to_uniform
from runtime_server.training.losses.laplacian import (
    HORIZON,
    NEIGHBOURS,
    dirichlet_energy,
    edge_weights,
    temporal_edges,
)
from runtime_server.training.losses.mmd import mmd_to_uniform
from runtime_server.training.losses.mse import mse_to_uniform
from runtime_server.training.losses.objectives import DEFAULT, OBJECTIVES, Objective, Views
from runtime_server.training.losses.sliced_wasserstein import PROJECTIONS, sliced_wasserstein_to_uniform

SPREAD_TERMS: dict[str, Callable[[Tensor, torch.Generator], Tensor]] = {
    "sw": sliced_wasserstein_to_uniform,
    "mse": mse_to_uniform,
    "kl": kl_to_uniform,
    "mmd": mmd_to_uniform,
}


@dataclass(frozen=True)
class HybridConfig:
    """The terms of the loss, and their weights."""

    task: bool = True
    """Whether the task is part of the loss; without it the other terms remain, for ablation."""
    lambda1: float = 0.1
    """Weight of the spread term (diversity)."""
    lambda2: float = 0.01
    """Weight of the Dirichlet energy (affinity)."""
    spread: str | None = "sw"
    """"sw", or an ablation instead: "mse", "kl", "mmd", None."""
    laplacian: bool = True
    """Whether the Dirichlet energy is part of the loss."""
    temperature: float = TEMPERATURE
    """For objectives that have a temperature."""
    projections: int = PROJECTIONS
    """Number of random directions of the sliced Wasserstein distance."""
    neighbours: int = NEIGHBOURS
    """How many of the nearest windows in time each window is joined to."""
    horizon: int = HORIZON
    """How many window indices of a device the graph reaches back."""
    sigma: float | None = None
    """Edge weights exp(-|t_i - t_j| / sigma), in windows; None for uniform weights."""
    seed: int = 0
    """Seed of the random directions and uniform samples."""

    def __post_init__(self) -> None:
        """Raise UsageError, naming the field, for a value with which the loss cannot be built."""
        if self.spread is not None and self.spread not in SPREAD_TERMS:
            raise UsageError(f"spread: unknown term {self.spread!r}, choose one of {', '.join(SPREAD_TERMS)}")
        for name in ("lambda1", "lambda2"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise UsageError(f"{name}: {getattr(self, name)} must be finite and not negative")
        for name in ("temperature", "projections", "neighbours", "horizon", "sigma"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise UsageError(f"{name}: {value} must be positive and finite")


LOSSES = {"task": HybridConfig(spread=None, laplacian=False), "hybrid": HybridConfig(sigma=4.0)}
"""What the server can optimise: the task alone, or all three terms with the published weights.

If windows are missing, the nearest one can be far away in time: the graph's edge weights decay with the distance."""


class HybridLoss:
    """The objective of one training step. It has its own generator: same seed, same sequence."""

    def __init__(self, config: HybridConfig | None = None, objective: Objective | None = None) -> None:
        """`objective` is the task; if not given, the default."""
        self.config = config or HybridConfig()
        self.objective = objective or OBJECTIVES[DEFAULT](
            (), width=0, temperature=self.config.temperature, seed=self.config.seed
        )
        self.generator = torch.Generator().manual_seed(self.config.seed)
        self._spread = SPREAD_TERMS.get(self.config.spread or "")
        if self.config.spread == "sw":
            self._spread = functools.partial(sliced_wasserstein_to_uniform, projections=self.config.projections)

    def __call__(
        self,
        embeddings: Tensor,
        *,
        positives: Tensor | None = None,
        negatives: Tensor | None = None,
        ignore: Tensor | None = None,
        matches: Tensor | None = None,
        windows: Tensor | None = None,
        chains: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, float]]:
        """Loss of `embeddings` [n, d], which are normalised here, and its parts before weighting ("total" is the sum).

        The task is the objective with `positives` [n, d], virtual `negatives` [n, m, d], `ignore` and `matches` bool[n,
        n] (see `Views`); without positives it is left out. The graph needs `windows` and `chains` int64[n] (see
        `temporal_edges`); without them the Dirichlet energy is left out. Raises UsageError for an empty batch.
        """
        if embeddings.ndim != 2 or not len(embeddings):
            raise UsageError(f"loss: embeddings of shape {tuple(embeddings.shape)}, [n, d] with n >= 1 expected")
        config, z = self.config, nn.functional.normalize(embeddings, dim=1)
        terms: dict[str, tuple[float, Tensor]] = {}
        if config.task and positives is not None:
            other = nn.functional.normalize(positives, dim=1)
            views = Views(z, other, negatives, ignore, matches, windows, chains)
            terms["task"] = (1.0, self.objective(views))
        if self._spread is not None:
            terms["spread"] = (config.lambda1, self._spread(z, self.generator))
        if config.laplacian and windows is not None and chains is not None:
            edges = temporal_edges(windows, chains, config.neighbours, config.horizon)
            weights = edge_weights(edges, windows, config.sigma)
            terms["laplacian"] = (config.lambda2, dirichlet_energy(z, edges, weights))
        total = z.sum() * 0.0
        for weight, value in terms.values():
            total = total + weight * value
        parts = {name: value.item() for name, (_, value) in terms.items()}
        return total, parts | {"total": total.item()}
